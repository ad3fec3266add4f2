"""Which layers of a folded network read whole numbers, and how large these can get: spikes, sums of spikes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from ..graph import operations as ops
from ..graph.rules import Join, Move, rule_of
from ..neurons import SpikingNeuron

__all__ = ["Bounds", "keeps_size", "whole_number_inputs"]

Bounds: TypeAlias = tuple[int, int]
"""The least and the greatest whole number that a tensor can hold, whatever the network is shown."""

_KEEP = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
"""Modules that, in eval mode, give nothing but numbers that they read."""

_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def whole_number_inputs(graph: fx.Graph, model: nn.Module) -> dict[str, Bounds]:
    """Which convolutions and linear layers read whole numbers alone, wherever they are called.

    It is told from the operations, not from an example: layers fed by neurons without an amplitude, by their sums,
    maxima and copies. An operation that is not known here gives real numbers.

    Args:
        graph: From :meth:`lightning_tspike.SpikingNetwork.trace`.
        model: The network's ``model``, folded.

    Returns:
        Name of the layer -> bounds of what it reads.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    bounds: dict[fx.Node, Bounds] = {}
    inputs: dict[str, list[Bounds | None]] = {}
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, ops.WEIGHTED):
            inputs.setdefault(str(node.target), []).append(bounds.get(node.all_input_nodes[0]))
        elif not node.meta.get("hooked") and (found := _bounds_of(node, module, modules, bounds)) is not None:
            bounds[node] = found
    return {name: _hull(some) for name, seen in inputs.items() if (some := _all_known(seen))}


def _bounds_of(
    node: fx.Node, module: Any, modules: Mapping[str, nn.Module], bounds: Mapping[fx.Node, Bounds]
) -> Bounds | None:
    if isinstance(module, SpikingNeuron):
        emits = (-module.levels if module.is_ternary else 0, module.levels)
        return emits if module.raw_amplitude is None else None
    signals = [n for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor)]
    read = _all_known([bounds.get(n) for n in signals])
    if not read:
        return None
    low, high = _hull(read)
    if isinstance(module, _KEEP):
        return low, high
    if keeps_size(node, module):
        return low, high
    if isinstance(module, (nn.AvgPool2d, nn.AvgPool3d)) and module.divisor_override == 1:  # it sums
        return min(low, 0) * ops.window_size(module), max(high, 0) * ops.window_size(module)
    rule = rule_of(node, modules, lambda _: False)
    if isinstance(rule, Move):
        return low, high
    if isinstance(rule, Join):
        pairs = [read[0], read[-1]]  # one tensor may be added to itself
        if node.target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            return pairs[0][0] + pairs[1][0], pairs[0][1] + pairs[1][1]
        return pairs[0][0] - pairs[1][1], pairs[0][1] - pairs[1][0]
    return None


def keeps_size(node: fx.Node, module: Any) -> bool:
    """Whether a node is an adaptive average pool to the size that is there: as in a VGG, at the size of its training.

    It gives what it reads.
    """
    return isinstance(module, _ADAPTIVE) and node.meta["value"].shape == node.all_input_nodes[0].meta["value"].shape


def _all_known(some: list[Bounds | None]) -> list[Bounds]:
    """All of them; none where one is not known."""
    known = [bounds for bounds in some if bounds is not None]
    return known if len(known) == len(some) else []


def _hull(some: list[Bounds]) -> Bounds:
    return min(low for low, _ in some), max(high for _, high in some)
