"""Measure a network on a dataset: accuracy, decisions and firing rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from .._batches import images_of, targets_of
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
    likeliest, labels = [], []
    try:
        with torch.no_grad(), firing_rates(network) as rates:
            for batch in track(batches, description, transient=True):
                logits = network(images_of(batch, weight.dtype).to(weight.device))
                targets = targets_of(batch, logits.shape[-1])
                likeliest.append(logits.topk(min(5, logits.shape[-1])).indices.cpu())
                labels.append((targets if targets.ndim == 1 else targets.argmax(-1)).cpu())
    finally:
        network.train(was_training)
    if not labels:
        raise ValueError("nothing to evaluate: the data loader gave no batch")
    found = torch.cat(likeliest)  # [N, 5], the likeliest first
    right = (found == torch.cat(labels).unsqueeze(1)).double()
    return Evaluation(right[:, 0].mean().item(), right.sum(1).mean().item(), found[:, 0], rates)
