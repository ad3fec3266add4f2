"""Choose thresholds by firing rate: every layer of a network fires as often as it is told to, on some images."""

from __future__ import annotations

from collections import Counter
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from .._batches import images_of
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from .calibration import new_statistics, on_inputs

__all__ = ["set_firing_rate"]

_HALVINGS = 40  # of the interval in which the threshold lies
_CLOSE = 1e-3  # share of the rate by which it may be missed
_PASSES = 3  # where a layer is called at several places, which share a threshold


@torch.no_grad()
def set_firing_rate(network: SpikingNetwork, images: Tensor, rate: float) -> dict[str, float]:
    """Set the threshold of every neuron layer so that a share ``rate`` of its spikes is not 0, over images and time.

    The images run through the network once, and each layer is set when it is reached: by what the layers before it send
    at their new thresholds, and by halving an interval, for what a neuron keeps and how it is reset depends on the
    threshold itself. Batch norms normalise by these images and take their statistics from them. A layer that is called
    at several places gets the threshold at which it fires so often on average.

    Args:
        network: It is changed in place; thresholds that are learned start where they are set.
        images: Images [B, C, H, W] or frames [B, T, C, H, W], on the network's device.
        rate: In (0, 1).

    Returns:
        For each neuron layer the share that fires now.

    Raises:
        ValueError: ``rate`` is not in (0, 1), or ``images`` are none.

    Warns:
        A layer misses the rate by more than a tenth: its inputs are 0, have few different values, or are negative for
        more of its binary neurons than are to be silent.
    """
    if not 0 < rate < 1:
        raise ValueError(f"the firing rate must be in (0, 1), got {rate!r}")
    images = images_of(images, next(network.parameters()).dtype)
    if len(images) == 0:
        raise ValueError("thresholds are set on images, got none")
    neurons = network.neurons()
    rates: dict[str, float] = {}
    calls: Counter[str] = Counter()
    inputs: dict[str, list[Tensor]] = {}  # of layers that are called at several places, until they are all there

    def fit(name: str, x: Tensor) -> Tensor:
        calls[name] += 1
        rates[name] = _fit_threshold(neurons[name], [x], rate)
        return x

    def fit_together(name: str, x: Tensor) -> Tensor:
        all_of_them = inputs.setdefault(name, [])
        all_of_them.append(x.clone() if calls[name] > 1 else x)  # a layer behind may work in place
        if len(all_of_them) == calls[name]:
            rates[name] = _fit_threshold(neurons[name], inputs.pop(name), rate)
        return x

    with new_statistics(network), on_inputs(neurons, fit):
        network(images)
    if any(count > 1 for count in calls.values()):  # what comes between two calls depends on the second
        for _ in range(_PASSES):
            with new_statistics(network), on_inputs(neurons, fit_together):
                network(images)
    if missed := {name: found for name, found in rates.items() if abs(found - rate) > 0.1 * rate}:
        warn(
            f"these neuron layers cannot fire at a rate of {rate}: "
            f"{', '.join(f'{name} ({found:.3f})' for name, found in missed.items())}",
            stacklevel=2,
        )
    return rates


def _fit_threshold(neuron: SpikingNeuron, inputs: list[Tensor], rate: float) -> float:
    """Scale the threshold of a layer so that it fires at a rate on these inputs; the rate that it has then."""
    before: Any = neuron.threshold.detach().clone()

    def fires(scale: float) -> float:
        neuron.threshold.copy_(scale * before)
        spikes = [neuron.forward(x) for x in inputs]
        return sum(int(s.count_nonzero()) for s in spikes) / sum(s.numel() for s in spikes)

    low, high = 1.0, 1.0
    while fires(low) < rate and low > 1e-6:
        low /= 2
    while fires(high) > rate and high < 1e6:
        high *= 2
    found = {scale: fires(scale) for scale in (low, high)}
    if found[low] == 0:  # nothing comes in
        neuron.threshold.copy_(before)
        return 0.0
    for _ in range(_HALVINGS):
        best = min(found, key=lambda scale: abs(found[scale] - rate))
        if abs(found[best] - rate) <= _CLOSE * rate:
            break
        middle = (low + high) / 2
        found[middle] = fires(middle)
        low, high = (middle, high) if found[middle] > rate else (low, middle)
    best = min(found, key=lambda scale: abs(found[scale] - rate))
    return fires(best)
