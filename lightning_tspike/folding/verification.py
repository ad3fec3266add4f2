"""Compare a network with its folded copy, and observe what its layers get and emit on a batch."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._observe import Observer, observing
from ..graph.operations import WEIGHTED, dense_macs
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from .report import LayerInput

__all__ = ["FoldError", "frames_like", "layer_inputs", "samples", "spike_signs", "verify"]

TOLERANCE = 1e-9
"""Greatest relative deviation of the logits in float64 that passes for rounding."""


class FoldError(RuntimeError):
    """The network cannot be folded, or folding changed what it computes; the message names where."""


def verify(network: SpikingNetwork, folded: SpikingNetwork, example: Tensor, *, tolerance: float = TOLERANCE) -> float:
    """Compare a network with its folded copy on a batch.

    Args:
        network: The network, in eval mode.
        folded: Its folded copy, in eval mode and of the same dtype (float64, for the default tolerance).
        example: Images or frames of that dtype.
        tolerance: Greatest deviation allowed, relative to the greatest logit.

    Returns:
        The greatest deviation of the logits, relative to the greatest logit.

    Raises:
        FoldError: The deviation is above ``tolerance`` (the first neuron layer that deviates is named), or the network
            itself gives logits that are not finite.
    """
    with torch.no_grad():
        expected: object = network(example, per_step=True)
        if not isinstance(expected, Tensor):
            raise FoldError(
                f"cannot verify a network that gives a {type(expected).__name__}, not logits: fold the whole network "
                "first, then take its feature maps"
            )
        got = folded(example, per_step=True)
    if not expected.isfinite().all():
        raise FoldError("the network gives logits that are not finite, so there is nothing to compare")
    deviation = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()
    if deviation <= tolerance:
        return deviation
    before, after = spike_signs(network, example), spike_signs(folded, example)
    differs = (name for name in before if not torch.equal(before[name], after[name]))
    raise FoldError(
        f"folded and unfolded logits deviate by {deviation:.1e} of the greatest logit (allowed: {tolerance:.0e}); "
        f"first layer that deviates: {next(differs, 'the classifier')}"
    )


def frames_like(example: Tensor, network: SpikingNetwork, generator: torch.Generator) -> Tensor:
    """Two sequences (one, if long) of frames [2, T, C, H, W] or vectors [2, T, F] with an example's mean and deviation.

    They are noise. Every other frame is the negative of the one before it, so that spikes cancel in neurons that add
    them up.
    """
    timesteps, shape = network.timesteps, example.shape[-len(network.input_size) :]
    noise = torch.randn(samples(timesteps), timesteps, *shape, generator=generator, dtype=example.dtype)
    noise[:, 1::2] = -noise[:, : timesteps - 1 : 2]
    return example.mean() + example.std(correction=0) * noise


def samples(timesteps: int) -> int:
    """How many images or sequences show enough, without taking much memory where there are many time steps."""
    return 2 if timesteps <= 16 else 1


_HOLDS: tuple[Literal["ternary", "integer", "real"], ...] = ("ternary", "integer", "real")


def layer_inputs(folded: SpikingNetwork, example: Tensor) -> list[LayerInput]:
    """Observe what reaches each weighted layer, on a batch, and count its operations."""
    seen: dict[str, LayerInput] = {}

    def count(name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        largest = x.abs().max().item()
        is_integer = torch.equal(x, x.round())
        holds: Literal["ternary", "integer", "real"] = (
            "real" if not is_integer else "ternary" if largest <= 1 else "integer"
        )
        macs = dense_macs(layer, output) // len(example)
        if name in seen:  # called at several places: the least favourable input counts
            holds = max(holds, seen[name].holds, key=_HOLDS.index)
            largest = max(largest, seen[name].largest)
            macs += seen[name].dense_macs
        seen[name] = LayerInput(name, holds, largest, macs)

    _show_calls(folded, example, WEIGHTED, count)
    return list(seen.values())


def spike_signs(network: SpikingNetwork, example: Tensor) -> dict[str, Tensor]:
    """Sign of every spike, by neuron layer in the order of execution."""
    signs: dict[str, Tensor] = {}

    def keep(name: str, _neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        new = spikes.sign().char().flatten()
        signs[name] = torch.cat([signs[name], new]) if name in signs else new  # called at several places

    _show_calls(network, example, (SpikingNeuron,), keep)
    return signs


def _show_calls(
    network: SpikingNetwork, example: Tensor, kinds: tuple[type[nn.Module], ...], observer: Observer
) -> None:
    """Run the network on an example and show each call of such a layer to ``observer``."""
    modules = {name: module for name, module in network.model.named_modules() if isinstance(module, kinds)}
    with torch.no_grad(), observing(modules, observer):
        network(example)
