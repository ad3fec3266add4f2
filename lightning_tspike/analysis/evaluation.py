"""Measure a network on a dataset: accuracy, decisions and firing rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._batches import images_of, targets_of
from .._waiting import counted
from ..network.spiking_network import SpikingNetwork
from .spikes import FiringRate, firing_rates

__all__ = ["Evaluation", "evaluate"]


@dataclass
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        accuracy: Top-1 accuracy in [0, 1].
        top5: Top-5 accuracy in [0, 1].
        decisions: Predicted class of every sample, shape [N], in the order of the data.
        firing_rates: By neuron layer.
    """

    accuracy: float
    top5: float
    decisions: Tensor
    firing_rates: dict[str, FiringRate] = field(repr=False)


def evaluate(network: SpikingNetwork, batches: Iterable[Any], *, description: str = "evaluating") -> Evaluation:
    """Classify labelled batches on the network's device, in eval mode, behind a progress bar.

    Args:
        network: Its train/eval mode is restored afterwards.
        batches: A data loader, or any iterable of (images [B, C, H, W] or frames [B, T, C, H, W], labels [B]), or of
            what else :mod:`lightning_tspike._batches` reads.
        description: Text of the progress bar.

    Returns:
        Accuracy, decisions and firing rates over all batches.

    Raises:
        ValueError: There is not one sample, or a batch cannot be read.
    """
    weight = next(network.parameters())
    was_training = network.training
    network.eval()
    decisions, among_five = [], []
    labels: list[Tensor] = []
    try:
        with torch.no_grad(), firing_rates(network) as rates:
            for batch in counted(batches, description, unit="images", size=lambda _: len(labels[-1])):
                logits = network(images_of(batch, weight.dtype).to(weight.device))
                targets = targets_of(batch, logits.shape[-1])
                decisions.append(logits.argmax(-1).cpu())
                labels.append((targets if targets.ndim == 1 else targets.argmax(-1)).cpu())
                likeliest = logits.topk(min(5, logits.shape[-1])).indices.cpu()
                among_five.append((likeliest == labels[-1].unsqueeze(1)).any(1))
    finally:
        network.train(was_training)
    if not decisions:
        raise ValueError("nothing to evaluate: the data loader gave no batch")
    decided = torch.cat(decisions)
    top1 = (decided == torch.cat(labels)).double().mean().item()
    return Evaluation(top1, torch.cat(among_five).double().mean().item(), decided, rates)
