"""Measure a network on a dataset: accuracy, decisions and firing rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from .ternarize import SpikingNetwork

__all__ = ["Evaluation", "FiringRate", "evaluate", "firing_rates"]


@dataclass
class FiringRate:
    """Share of (neuron, time step, sample) triples that fired, by sign of the spike."""

    positive: float
    negative: float

    @property
    def total(self) -> float:
        return self.positive + self.negative


@dataclass
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        accuracy: Top-1 accuracy in [0, 1].
        decisions: Predicted class of every sample, shape [N], in the order of the data.
        firing_rates: By neuron layer.
    """

    accuracy: float
    decisions: Tensor
    firing_rates: dict[str, FiringRate] = field(repr=False)


def evaluate(network: SpikingNetwork, batches: Iterable[Any], *, description: str = "evaluating") -> Evaluation:
    """Classify labelled batches (images, labels) on the network's device, in eval mode, behind a progress bar.

    Args:
        network: Its train/eval mode is restored afterwards.
        batches: A data loader, or any iterable of (images [B, C, H, W] or frames [B, T, C, H, W], labels [B]).
        description: Text of the progress bar.

    Returns:
        Accuracy, decisions and firing rates over all batches.

    Raises:
        ValueError: There is not one sample.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    decisions, labels = [], []
    try:
        with torch.no_grad(), firing_rates(network) as rates:
            for x, y in track(batches, description, transient=True):
                decisions.append(network(x.to(device)).argmax(-1).cpu())
                labels.append(y.cpu())
    finally:
        network.train(was_training)
    if not decisions:
        raise ValueError("nothing to evaluate: the data loader gave no batch")
    decided = torch.cat(decisions)
    return Evaluation((decided == torch.cat(labels)).double().mean().item(), decided, rates)


@contextmanager
def firing_rates(network: SpikingNetwork) -> Iterator[dict[str, FiringRate]]:
    """Count spikes while the block lasts; the rates are in the dictionary when it ends.

    Counts stay on the network's device until then, so counting does not wait for it.

    Example:
        with firing_rates(network) as rates:
            network(images)
        rates["layer1.0.act1"].total
    """
    counts: dict[str, Tensor] = {}  # positive, negative, all
    rates: dict[str, FiringRate] = {}

    def count(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, spikes: Tensor) -> None:
            new = torch.stack([(spikes > 0).sum(), (spikes < 0).sum(), torch.tensor(spikes.numel()).to(spikes.device)])
            counts[name] = counts[name] + new if name in counts else new

        return hook

    handles = [neuron.register_forward_hook(count(name)) for name, neuron in network.neurons().items()]
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()
        for name, (positive, negative, total) in ((n, c.tolist()) for n, c in counts.items()):
            rates[name] = FiringRate(positive / total, negative / total)
