"""Fold learned spike amplitudes into weights and thresholds, exactly.

Give each channel of each tensor of the network a positive gauge g: true value = g * stored value. The logits keep
g = 1. How each operation changes is in :mod:`lightning_tspike.graph.layer_rules` (layers with numbers of their own) and
:mod:`lightning_tspike.graph.rules` (all others); docs/fold.md has them in one table.

Gauges that must be equal form a class (:class:`lightning_tspike.graph.GaugeClasses`). A class into which one amplitude
flows takes that amplitude as its gauge, every other class takes 1. So amplitudes vanish, the architecture stays as it
is, and identity shortcuts carry bare -1, 0, +1. The paper (arXiv 2312.06372, its re-parameterisation section) covers a
convolution fed by spikes; the rest of the table is this project's. docs/fold.md derives it.

A neuron whose class must have g = 1, or shares its class with another amplitude, keeps a / g, and the report says so.
So does one whose spikes can cancel in a neuron that forgets nothing: there rounding decides (:mod:`.ties`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .._observe import Observer, observing
from ..files.weights import unusable
from ..graph.activations import activation_calls
from ..graph.gauges import GaugeClasses, TrainingScales
from ..graph.layer_rules import layer_rule_of
from ..graph.operations import NORMS, WEIGHTED, sums_whole_windows
from ..graph.tracing import TraceError, copy_of
from ..network.report import group_numbers
from ..network.rewrites import Rewrites
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from .report import FoldedNeuron, FoldReport, LayerInput

__all__ = ["FoldError", "FoldReport", "fold", "verify"]

TOLERANCE = 1e-9
"""Greatest relative deviation of the logits in float64 that passes for rounding."""


class FoldError(RuntimeError):
    """The network cannot be folded, or folding changed what it computes; the message names where."""


def fold(
    network: SpikingNetwork, example: Tensor | None = None, *, integer_pools: bool = False, merge_bn: bool = False
) -> tuple[SpikingNetwork, FoldReport]:
    """Fold the amplitudes of a network into its weights and thresholds, and verify the result in float64.

    Args:
        network: From :func:`lightning_tspike.ternarize`; it is left as it is.
        example: Images [B, C, H, W] or frames [B, T, C, H, W] to verify on. By default two images of standard normal
            noise, of the network's ``input_size``. Two sequences of frames of noise, with the example's mean and
            deviation, are verified as well: where the input changes, other spikes meet. (One each, if T > 16.) Where a
            model's Python code takes another path for other image sizes, the path that the example takes is the one
            that is folded and verified.
        integer_pools: Let average pools of spikes sum, so that the layers behind them read small integers; what reads
            them takes up the division. Pools that divide by different numbers at the edge, and those whose result is
            added to something else, stay as they are.
        merge_bn: Make each batch norm part of the convolution or linear layer before it, where nothing else reads
            that layer's output.

    Returns:
        The folded network, a copy in eval mode on the same device and in the same dtype, and the report. All of the
        work is done in float64 on the CPU; the result is rounded to the network's dtype at the very end.

    Raises:
        FoldError: The network cannot be traced, has weights or gives logits that are not finite, or its folded copy
            deviates by more than rounding.
    """
    if faults := unusable(network.model.state_dict()):
        raise FoldError(f"cannot fold weights that are not finite: {'; '.join(faults)}; go back to a sound checkpoint")
    weight = next(network.parameters())
    exact = copy_of(network).to("cpu", torch.float64).eval()
    folded = copy_of(exact)
    generator = torch.Generator().manual_seed(0)
    if example is None:
        count = _samples(network.timesteps)
        example = torch.randn(count, *network.input_size, generator=generator, dtype=torch.float64)
    example = example.detach().to("cpu", torch.float64)
    try:
        graph = folded.trace(example[:1])
    except TraceError as error:
        raise FoldError(f"cannot fold: {error}") from error
    cancelled = TrainingScales(graph, folded.model).cancelled()
    classes = _classes(graph, folded.model, integer_pools)
    groups = group_numbers(classes)
    amplitudes = {neuron: _numbers(neuron.amplitude) for neuron, _ in classes.neurons()}
    _absorb(classes)
    rewrites = Rewrites(tuple(classes.pools), _merge_norms(classes) if merge_bn else {})
    rewrites.apply(folded.model)
    folded.rewrites = folded.rewrites.followed_by(rewrites)
    deviation = max(verify(exact, folded, x) for x in (example, _frames_like(example, network, generator)))
    fired = {
        name: signs.count_nonzero().item() / signs.numel() for name, signs in _spike_signs(folded, example).items()
    }
    neurons = tuple(
        FoldedNeuron(
            name=layer.name,
            amplitude=amplitudes[neuron],
            threshold=_numbers(neuron.firing_threshold),
            group=groups[neuron],
            effect="cancelled" if neuron in cancelled else "live",
            folded=neuron.raw_amplitude is None,
            firing_rate=fired[layer.name],
        )
        for neuron, layer in classes.neurons()
    )
    layers = tuple(_layer_inputs(folded, example))
    functions = tuple(where for _, where in activation_calls(graph))
    tied = tuple(
        layer.name
        for neuron, layer in classes.neurons()
        if neuron.raw_amplitude is not None and classes.has_ties(layer.outputs)
    )
    report = FoldReport(
        neurons, layers, deviation, rewrites.sum_pools, dict(rewrites.merged_norms), functions=functions, tied=tied
    )
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
    before, after = _spike_signs(network, example), _spike_signs(folded, example)
    differs = (name for name in before if not torch.equal(before[name], after[name]))
    raise FoldError(
        f"folded and unfolded logits deviate by {deviation:.1e} of the greatest logit (allowed: {tolerance:.0e}); "
        f"first layer that deviates: {next(differs, 'the classifier')}"
    )


def _frames_like(example: Tensor, network: SpikingNetwork, generator: torch.Generator) -> Tensor:
    """Two sequences (one, if long) of frames [2, T, C, H, W] or vectors [2, T, F] with an example's mean and deviation.

    They are noise. Every other frame is the negative of the one before it, so that spikes cancel in neurons that add
    them up.
    """
    timesteps, shape = network.timesteps, example.shape[-len(network.input_size) :]
    noise = torch.randn(_samples(timesteps), timesteps, *shape, generator=generator, dtype=example.dtype)
    noise[:, 1::2] = -noise[:, : timesteps - 1 : 2]
    return example.mean() + example.std(correction=0) * noise


def _samples(timesteps: int) -> int:
    """How many images or sequences show enough, without taking much memory where there are many time steps."""
    return 2 if timesteps <= 16 else 1


def _classes(graph: fx.Graph, model: nn.Module, integer_pools: bool) -> GaugeClasses:
    classes = GaugeClasses(graph, model)
    if not integer_pools:
        return classes
    calls = Counter(node.target for node in graph.nodes)
    modules = dict(model.named_modules())
    pools = {
        node.target
        for node in graph.nodes
        if node.op == "call_module" and calls[node.target] == 1
        if sums_whole_windows(modules[node.target]) and classes.reads_spikes(node)
    }
    while impossible := (classes := GaugeClasses(graph, model, pools)).impossible_pools():
        pools -= impossible
    return classes


def _absorb(classes: GaugeClasses) -> None:
    """Rescale every layer of the model, in place, by the gauges around it."""
    gauges = classes.gauges()  # all of them are read before any layer changes
    with torch.no_grad():
        for layer in classes.layers.values():
            g_in, g_out = gauges[layer.inputs], gauges[layer.outputs]  # [C] or [1]
            layer_rule_of(layer.module).absorb(layer.module, g_in, g_out)


def _merge_norms(classes: GaugeClasses) -> dict[str, str]:
    """Put each batch norm's numbers into the layer before it; which ones, by their names."""
    merged = {}
    for layer in classes.layers.values():
        norm, before = layer.module, classes.layer_before(layer)
        if not isinstance(norm, NORMS) or before is None or not isinstance(before.module, WEIGHTED):
            continue
        mean: Any = norm.running_mean  # a norm without statistics is no layer that takes up gauges
        variance: Any = norm.running_var
        weight = norm.weight if norm.affine else torch.ones_like(mean)
        bias = norm.bias if norm.affine else torch.zeros_like(mean)
        fuse = fuse_linear_bn_weights if isinstance(before.module, nn.Linear) else fuse_conv_bn_weights
        old = before.module.weight, before.module.bias
        before.module.weight, before.module.bias = fuse(*old, mean, variance, norm.eps, weight, bias)
        merged[layer.name] = before.name
    return merged


_HOLDS: tuple[Literal["ternary", "integer", "real"], ...] = ("ternary", "integer", "real")


def _layer_inputs(folded: SpikingNetwork, example: Tensor) -> list[LayerInput]:
    """Observe what reaches each weighted layer, on a batch, and count its operations."""
    seen: dict[str, LayerInput] = {}

    def look(name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        largest = x.abs().max().item()
        is_integer = torch.equal(x, x.round())
        holds: Literal["ternary", "integer", "real"] = (
            "real" if not is_integer else "ternary" if largest <= 1 else "integer"
        )
        macs = output.numel() * layer.weight[0].numel() // len(example)
        if name in seen:  # called at several places: the least favourable input counts
            holds = max(holds, seen[name].holds, key=_HOLDS.index)
            largest = max(largest, seen[name].largest)
            macs += seen[name].macs
        seen[name] = LayerInput(name, holds, largest, macs)

    _show_calls(folded, example, WEIGHTED, look)
    return list(seen.values())


def _spike_signs(network: SpikingNetwork, example: Tensor) -> dict[str, Tensor]:
    """Sign of every spike, by neuron layer in the order of execution."""
    signs: dict[str, Tensor] = {}

    def look(name: str, _neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        new = spikes.sign().char().flatten()
        signs[name] = torch.cat([signs[name], new]) if name in signs else new  # called at several places

    _show_calls(network, example, (SpikingNeuron,), look)
    return signs


def _show_calls(network: SpikingNetwork, example: Tensor, kinds: tuple[type[nn.Module], ...], look: Observer) -> None:
    """Run the network on an example and show each call of such a layer to ``look``."""
    modules = {name: module for name, module in network.model.named_modules() if isinstance(module, kinds)}
    with torch.no_grad(), observing(modules, look):
        network(example)


def _numbers(value: Tensor | float) -> tuple[float, ...]:
    return tuple(torch.as_tensor(value).detach().flatten().tolist())
