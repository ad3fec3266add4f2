"""Whether layers of neurons work: silent, saturated and exploding ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .._observe import observing
from ..functional import per_channel
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron

__all__ = ["MEMBRANE_LIMIT", "SATURATED_ABOVE", "SILENT_BELOW", "LayerHealth", "layer_health"]

SILENT_BELOW = 0.0
SATURATED_ABOVE = 0.99
MEMBRANE_LIMIT = 50.0


class LayerHealth(NamedTuple):
    """Of one layer of neurons, over a batch and all time steps.

    Attributes:
        neurons: How many it has for an image.
        firing_rate: Share of (neuron, time step, image) triples that fire.
        membrane: Mean of abs(u) / theta, its membrane potential in thresholds.
    """

    neurons: int
    firing_rate: float
    membrane: float

    def trouble(
        self,
        *,
        silent_below: float = SILENT_BELOW,
        saturated_above: float = SATURATED_ABOVE,
        membrane_limit: float = MEMBRANE_LIMIT,
    ) -> tuple[str, str] | None:
        """What is wrong with it, in a word and in a sentence; None for a layer that works.

        Args:
            silent_below: Where no more than this share fires, it is silent.
            saturated_above: Where this share fires, or more, it is saturated.
            membrane_limit: Where its membrane potential is above that, or NaN, it is exploding.
        """
        fires = f"{self.firing_rate:.2%} of its neurons fire"
        if not self.membrane <= membrane_limit:  # NaN is not
            return "exploding", f"exploding (mean membrane potential {self.membrane:.3g} thresholds)"
        if self.firing_rate <= silent_below:
            return "silent", f"silent ({fires})"
        if self.firing_rate >= saturated_above:
            return "saturated", f"saturated ({fires})"
        return None


@contextmanager
def layer_health(network: SpikingNetwork) -> Iterator[dict[str, LayerHealth]]:
    """Look at every layer of neurons while the block lasts; what was seen is in the dictionary when it ends."""
    sums: dict[str, Tensor] = {}  # spikes, abs(u) / theta, all: shape [3]
    neurons: dict[str, int] = {}
    layers: dict[str, LayerHealth] = {}

    @torch.no_grad()
    def look(name: str, neuron: SpikingNeuron, x: Tensor, spikes: Tensor) -> None:
        u = neuron.membrane_potential(x)
        in_thresholds = (u / per_channel(neuron.firing_threshold, u)).abs().sum(dtype=torch.float32)
        count = torch.tensor(float(spikes.numel()), device=u.device)
        new = torch.stack([(spikes != 0).sum().float(), in_thresholds, count])
        sums[name] = sums[name] + new if name in sums else new  # called more than once
        neurons[name] = spikes[0].numel()

    with observing(network.neurons(), look):
        yield layers
    for name, tensor in sums.items():
        fired, membrane, count = tensor.tolist()
        layers[name] = LayerHealth(neurons[name], fired / count, membrane / count)
