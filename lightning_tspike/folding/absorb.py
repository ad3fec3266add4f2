"""Fold learned spike amplitudes into weights and thresholds, exactly.

Give each channel of each tensor of the network a positive gauge g: true value = g * stored value. The logits keep
g = 1. How each operation changes is in :mod:`lightning_tspike.graph.layer_rules` (layers with numbers of their own) and
:mod:`lightning_tspike.graph.rules` (all others); docs/fold.md has them in one table.

Gauges that must be equal form a class (:class:`lightning_tspike.graph.GaugeClasses`). A class into which one amplitude
flows takes that amplitude as its gauge, every other class takes 1. So amplitudes vanish, the architecture stays as it
is, and identity shortcuts carry bare -1, 0, +1. The paper (arXiv 2312.06372, its re-parameterisation section) covers a
convolution fed by spikes; the rest of the table is this project's. docs/fold.md derives it.

Convolutions that standardise their weights at each call hold the standardised ones after the fold.

A neuron whose class must have g = 1, or shares its class with another amplitude, keeps a / g, and the report says so.
So does one whose spikes can cancel in a neuron that forgets nothing: there rounding decides (:mod:`.ties`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..files.weights import unusable
from ..graph.activations import activation_calls
from ..graph.gauges import GaugeClasses, TrainingScales, classes_that_sum
from ..graph.layer_rules import layer_rule_of
from ..graph.operations import NORMS, WEIGHTED
from ..graph.tracing import TraceError, copy_of
from ..network.report import group_numbers
from ..network.rewrites import STANDARDIZED, Rewrites
from ..network.spiking_network import SpikingNetwork
from .report import FoldedNeuron, FoldReport
from .verification import FoldError, frames_like, layer_inputs, samples, spike_signs, verify

__all__ = ["fold"]


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
        count = samples(network.timesteps)
        example = torch.randn(count, *network.input_size, generator=generator, dtype=torch.float64)
    example = example.detach().to("cpu", torch.float64)
    modules = folded.model.named_modules()
    plain = Rewrites(standardized=tuple(name for name, module in modules if isinstance(module, STANDARDIZED)))
    plain.apply(folded.model)
    try:
        graph = folded.trace(example[:1])
    except TraceError as error:
        raise FoldError(f"cannot fold: {error}") from error
    cancelled = TrainingScales(graph, folded.model).cancelled()
    classes = (classes_that_sum if integer_pools else GaugeClasses)(graph, folded.model)
    groups = group_numbers(classes)
    amplitudes = {neuron: _numbers(neuron.amplitude) for neuron, _ in classes.neurons()}
    _absorb(classes)
    rewrites = Rewrites(sum_pools=tuple(classes.pools), merged_norms=_merge_norms(classes) if merge_bn else {})
    rewrites.apply(folded.model)
    folded.rewrites = folded.rewrites.followed_by(plain).followed_by(rewrites)
    deviation = max(verify(exact, folded, x) for x in (example, frames_like(example, network, generator)))
    fired = {name: signs.count_nonzero().item() / signs.numel() for name, signs in spike_signs(folded, example).items()}
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
    layers = tuple(layer_inputs(folded, example))
    functions = tuple(where for _, where in activation_calls(graph))
    tied = tuple(
        layer.name
        for neuron, layer in classes.neurons()
        if neuron.raw_amplitude is not None and classes.has_ties(layer.outputs)
    )
    report = FoldReport(
        neurons,
        layers,
        deviation,
        plain.standardized,
        rewrites.sum_pools,
        dict(rewrites.merged_norms),
        functions=functions,
        tied=tied,
    )
    return folded.to(weight.device, weight.dtype), report


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


def _numbers(value: Tensor | float) -> tuple[float, ...]:
    return tuple(torch.as_tensor(value).detach().flatten().tolist())
