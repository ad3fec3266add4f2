"""Fold learned spike amplitudes into weights and thresholds, exactly.

Give each tensor of the network a positive gauge g: true value = g * stored value. The logits keep g = 1, and

==========================  ===========================================================================================
operation                   rule
==========================  ===========================================================================================
neuron                      reads gauge g_in: stored threshold = theta / g_in (the membrane is stored as u / g_in);
                            sends s in {-1, 0, +1}, so its output has gauge a
convolution, linear         W' = W * g_in / g_out,  b' = b / g_out
batch norm (eval)           mean' = mean / g_in,  weight' = weight * g_in / g_out,  bias' = bias / g_out; the variance
                            stays, so that its eps is met exactly
add, concatenate            operands and result share one gauge
pools, flatten, dropout,    the gauge passes through: f(g * x) = g * f(x) for g > 0
identity, ReLU, mean
anything else               gauge 1 on both sides
==========================  ===========================================================================================

Tensors that must share a gauge form a class (:class:`lightning_tspike.graph.GaugeClasses`). A class into which one
amplitude flows takes that amplitude as its gauge, every other class takes 1. So amplitudes vanish, the architecture
stays as it is, and identity shortcuts carry bare -1, 0, +1. The paper (arXiv 2312.06372, its re-parameterisation
section) covers a convolution fed by spikes; the rest of the table is this project's.

A neuron whose class must have g = 1, or shares its class with another amplitude, keeps its own, and the report says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .graph import NORMS, WEIGHTED, GaugeClasses, TraceError, trace
from .neurons import TernaryLIF
from .ternarize import SpikingNetwork

__all__ = ["FoldError", "FoldReport", "FoldedNeuron", "LayerInput", "fold", "verify"]

TOLERANCE = 1e-9
"""Greatest relative deviation of the logits in float64 that passes for rounding."""


class FoldError(RuntimeError):
    """The network cannot be folded, or folding changed what it computes; the message names where."""


@dataclass(frozen=True)
class FoldedNeuron:
    """One neuron layer: its amplitude before folding, its threshold after, and whether the amplitude is gone."""

    name: str
    amplitude: float
    threshold: float
    folded: bool


@dataclass(frozen=True)
class LayerInput:
    """What the input of one weighted layer held on the verification batch; only additions are needed if not real."""

    name: str
    holds: Literal["ternary", "integer", "real"]
    largest: float


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    Attributes:
        neurons: Every neuron layer, in the order of execution.
        layers: Every weighted layer (convolution, linear), in the order of execution.
        deviation: Greatest deviation of the logits on the verification batch in float64, relative to the greatest
            logit.
    """

    neurons: tuple[FoldedNeuron, ...]
    layers: tuple[LayerInput, ...]
    deviation: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        kept = [neuron.name for neuron in self.neurons if not neuron.folded]
        holds = [layer.holds for layer in self.layers]
        return (
            f"{len(self.neurons) - len(kept)} of {len(self.neurons)} amplitudes folded"
            + (f" (kept: {', '.join(kept)})" if kept else "")
            + f"; inputs of {len(holds)} weighted layers: {holds.count('ternary')} ternary, "
            f"{holds.count('integer')} integer, {holds.count('real')} real; "
            f"greatest relative deviation in float64 {self.deviation:.1e}"
        )


def fold(network: SpikingNetwork, example: Tensor | None = None) -> tuple[SpikingNetwork, FoldReport]:
    """Fold the amplitudes of a network into its weights and thresholds, and verify the result in float64.

    Args:
        network: From :func:`lightning_tspike.ternarize`; it is left as it is.
        example: Images [B, C, H, W] or frames [B, T, C, H, W] to verify on. By default two images of standard normal
            noise, of the network's ``input_size``. Where a model's Python code takes another path for other image
            sizes, the path that the example takes is the one that is folded and verified.

    Returns:
        The folded network, a copy in eval mode on the same device and in the same dtype, and the report. All of the
        work is done in float64 on the CPU; the result is rounded to the network's dtype at the very end.

    Raises:
        FoldError: The network cannot be traced, has an amplitude of 0, gives logits that are not finite, or its folded
            copy deviates by more than rounding.
    """
    weight = next(network.parameters())
    exact = copy.deepcopy(network).to("cpu", torch.float64).eval()
    folded = copy.deepcopy(exact)
    if example is None:
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, *network.input_size, generator=generator, dtype=torch.float64)
    example = example.detach().to("cpu", torch.float64)
    try:
        graph = trace(folded.model, folded.fold_time(example[:1]))
    except TraceError as error:
        raise FoldError(f"cannot fold: {error}") from error
    neurons = _absorb(GaugeClasses(graph, folded.model), folded.model)
    deviation = verify(exact, folded, example)
    report = FoldReport(tuple(neurons), tuple(_layer_inputs(folded, example)), deviation)
    return folded.to(weight.device, weight.dtype), report


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
        expected, got = network(example, per_step=True), folded(example, per_step=True)
    if not expected.isfinite().all():
        raise FoldError("the network gives logits that are not finite (NaN or infinite weights?): nothing to fold")
    deviation = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()
    if deviation <= tolerance:
        return deviation
    before, after = _spike_signs(network, example), _spike_signs(folded, example)
    differs = (name for name in before if not torch.equal(before[name], after[name]))
    raise FoldError(
        f"folded and unfolded logits deviate by {deviation:.1e} of the greatest logit (allowed: {tolerance:.0e}); "
        f"first layer that deviates: {next(differs, 'the classifier')}"
    )


def _absorb(classes: GaugeClasses, model: nn.Module) -> list[FoldedNeuron]:
    """Rescale every layer of the model, in place, by the gauges around it."""
    names = {module: name for name, module in model.named_modules()}
    neurons = []
    with torch.no_grad():
        gauges = {  # all of them are read before any layer changes
            module: (_gauge(classes, node.all_input_nodes[0]), _gauge(classes, node))
            for module, node in classes.calls.items()
        }
        for module, (g_in, g_out) in gauges.items():
            if isinstance(module, TernaryLIF):
                amplitude = float(module.amplitude)
                if amplitude == 0:
                    raise FoldError(f"the amplitude of {names[module]} is 0: its spikes carry nothing, nothing to fold")
                module.threshold /= g_in
                if amplitude == g_out:
                    module.raw_amplitude = None
                neurons.append(FoldedNeuron(names[module], amplitude, module.threshold.item(), amplitude == g_out))
            elif isinstance(module, WEIGHTED):
                module.weight *= g_in / g_out
                if module.bias is not None:
                    module.bias /= g_out
            elif isinstance(module, NORMS):
                _absorb_in_norm(module, g_in, g_out)
    return neurons


def _absorb_in_norm(norm: Any, g_in: float, g_out: float) -> None:
    norm.running_mean /= g_in
    if norm.affine:
        norm.weight *= g_in / g_out
        norm.bias /= g_out
    else:  # no weight: the variance takes the scale, 1 / sqrt(var' + eps) = g_in / g_out / sqrt(var + eps)
        norm.running_var.add_(norm.eps).mul_((g_out / g_in) ** 2).sub_(norm.eps)


def _gauge(classes: GaugeClasses, node: fx.Node) -> float:
    """The amplitude that flows into a tensor's class, or 1 where there is none, several, or the class is pinned."""
    amplitudes = {float(neuron.amplitude) for neuron in classes.neurons.get(classes.find(node), [])}
    return amplitudes.pop() if len(amplitudes) == 1 and not classes.is_pinned(node) else 1.0


_HOLDS: tuple[Literal["ternary", "integer", "real"], ...] = ("ternary", "integer", "real")


def _layer_inputs(folded: SpikingNetwork, example: Tensor) -> list[LayerInput]:
    """Look at what reaches each weighted layer, on a batch."""
    seen: dict[str, LayerInput] = {}

    def look(name: str, x: Tensor, _output: Tensor) -> None:
        largest = x.abs().max().item()
        is_integer = torch.equal(x, x.round())
        holds: Literal["ternary", "integer", "real"] = (
            "real" if not is_integer else "ternary" if largest <= 1 else "integer"
        )
        if name in seen:  # called at several places: the least favourable input counts
            holds = max(holds, seen[name].holds, key=_HOLDS.index)
            largest = max(largest, seen[name].largest)
        seen[name] = LayerInput(name, holds, largest)

    _run_hooked(folded, example, WEIGHTED, look)
    return list(seen.values())


def _spike_signs(network: SpikingNetwork, example: Tensor) -> dict[str, Tensor]:
    """Sign of every spike, by neuron layer in the order of execution."""
    signs: dict[str, Tensor] = {}
    _run_hooked(network, example, (TernaryLIF,), lambda name, _x, spikes: signs.update({name: spikes.sign().char()}))
    return signs


def _run_hooked(
    network: SpikingNetwork,
    example: Tensor,
    kinds: tuple[type[nn.Module], ...],
    look: Callable[[str, Tensor, Tensor], None],
) -> None:
    """Run the network on an example and show each call of such a layer to ``look``: its name, input and output."""
    handles = [
        module.register_forward_hook(lambda _m, args, output, name=name: look(name, args[0], output))
        for name, module in network.model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
