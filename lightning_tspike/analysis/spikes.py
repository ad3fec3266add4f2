"""Count spikes: firing rates by sign and time step, and how much information they can carry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._observe import observing
from ..network.spiking_network import SpikingNetwork

__all__ = ["FiringRate", "entropy", "firing_rates"]


@dataclass(frozen=True)
class FiringRate:
    """How often the neurons of one layer fired.

    Attributes:
        positive_by_step: Share of (neuron, sample) pairs that sent a positive spike, of whatever level, for each of the
            T time steps.
        negative_by_step: The same for negative spikes; zeros for binary neurons.
    """

    positive_by_step: tuple[float, ...]
    negative_by_step: tuple[float, ...]

    @property
    def positive(self) -> float:
        """Share of (neuron, time step, sample) triples that sent a positive spike."""
        return sum(self.positive_by_step) / len(self.positive_by_step)

    @property
    def negative(self) -> float:
        """Share of (neuron, time step, sample) triples that sent a negative spike."""
        return sum(self.negative_by_step) / len(self.negative_by_step)

    @property
    def total(self) -> float:
        """Share of (neuron, time step, sample) triples that fired."""
        return self.positive + self.negative

    @property
    def entropy(self) -> float:
        """Entropy of a spike in bits, at most log2(3) = 1.585: what a map of N spikes holds at most, divided by N.

        Of spikes with several levels it is the entropy of the sign, so less than theirs.

        The paper's argument for three values instead of two (arXiv 2312.06372, Proposition 1), with the measured
        frequencies instead of equal ones.
        """
        return entropy(self.positive, self.negative, 1 - self.total)

    @property
    def unsigned_entropy(self) -> float:
        """The same without the sign, at most 1: what binary neurons that fire as often could emit."""
        return entropy(self.total, 1 - self.total)


def entropy(*probabilities: float) -> float:
    """Shannon entropy in bits, H = -sum_i p_i log2 p_i."""
    return -sum(p * math.log2(p) for p in probabilities if p > 0)


@contextmanager
def firing_rates(network: SpikingNetwork) -> Iterator[dict[str, FiringRate]]:
    """Count spikes while the block lasts; the rates, by neuron layer, are in the dictionary when it ends.

    Counts stay on the network's device until then, so counting does not wait for it.

    Example:
        >>> with firing_rates(network) as rates:
        ...     logits = network(images)
        >>> 0 <= rates["stages.0.0.act1"].total <= 1
        True
    """
    counts: dict[str, Tensor] = {}  # positive, negative, all: shape [3, T]
    rates: dict[str, FiringRate] = {}

    @torch.no_grad()
    def count(name: str, neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        timesteps = neuron.timesteps
        steps = spikes.unflatten(0, (timesteps, -1)).flatten(1)  # [T, spikes]
        all_spikes = torch.full((timesteps,), steps.shape[1], device=spikes.device)
        new = torch.stack([(steps > 0).sum(1), (steps < 0).sum(1), all_spikes])
        if name in counts:
            most = max(timesteps, counts[name].shape[1])  # frames may differ in their number
            new = F.pad(new, (0, most - timesteps)) + F.pad(counts[name], (0, most - counts[name].shape[1]))
        counts[name] = new

    with observing(network.neurons(), count):
        yield rates
    for name, (positive, negative, total) in ((n, c.tolist()) for n, c in counts.items()):
        rates[name] = FiringRate(
            tuple(p / n for p, n in zip(positive, total, strict=True)),
            tuple(p / n for p, n in zip(negative, total, strict=True)),
        )
