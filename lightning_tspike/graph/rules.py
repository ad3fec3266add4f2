"""What operations without numbers of their own do with gauges: one class an operation, registered in :data:`RULES`.

All of them are positively homogeneous, f(g * x) = g * f(x) for g > 0. A rule says which modules, functions and methods
it is for, how the gauges of the result follow from those of what is read, and whether spikes stay spikes. Layers with
numbers to rescale are in :mod:`lightning_tspike.graph.layer_rules`. Whatever has no rule has gauge 1 on both sides.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import operations as ops

__all__ = ["RULES", "Join", "Rule", "Walk", "rule_of"]


class Walk(Protocol):
    """A walk through a graph that gives every tensor the ids of its gauges (:mod:`lightning_tspike.graph.gauges`)."""

    ids: dict[fx.Node, Any]

    def unite(self, a: Tensor, b: Tensor) -> None:
        """These ids stand for the same gauges."""

    def along(self, ids: Tensor, axis: int) -> Tensor:
        """Unite along all dimensions but one; gives the ids along that one."""

    def pooled(self, node: fx.Node, channels: Tensor) -> Tensor:
        """Ids behind an operation within channels, of what it reads: the same, but where a pool is to sum."""

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a tensor has gauge 1 whatever is united later."""

    def moved(self, node: fx.Node) -> Any:
        """The ids, moved as the operation moves elements: by the operation itself."""


class Rule:
    """One kind of operation.

    Attributes:
        covers: What it is for, in the table.
        gauges: What becomes of gauges, in the table.
        spikes: Whether spikes stay spikes, in the table.
        modules: Types of modules.
        functions: Functions.
        methods: Names of a tensor's methods.
    """

    covers: ClassVar[str]
    gauges: ClassVar[str]
    spikes: ClassVar[str]
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    functions: ClassVar[frozenset[Callable[..., Any]]] = frozenset()
    methods: ClassVar[frozenset[str]] = frozenset()

    def is_for(self, node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> bool:
        """Whether a node is such an operation.

        Args:
            node: Of a traced graph; ``meta["value"]`` is what it gives.
            modules: Of the model, by name.
            is_constant: Whether a node is a tensor of gauge 1 whatever comes of the others.
        """
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], self.modules)
        return node.target in (self.methods if node.op == "call_method" else self.functions)

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        """Ids of what the operation gives.

        Args:
            walk: Has the ids of what is read, and unites those that must be equal.
            node: The operation.
            signals: The nodes it reads that have ids.

        Returns:
            A tensor with as many dimensions as the result, each of full size or of size 1 where nothing varies along
            it; a list of them where the result is one. None where nothing is known.
        """
        raise NotImplementedError


class Move(Rule):
    """Elements only change places."""

    covers = "concatenate, flatten, reshape, permute, split, roll, pixel shuffle"
    gauges = "every element takes its gauge along"
    spikes = "yes"
    modules = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
    functions = frozenset({
        operator.getitem, torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.unbind, torch.flatten,
        torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.unflatten, torch.roll,
        torch.flip, torch.movedim, torch.narrow, F.pixel_shuffle, F.pixel_unshuffle,
    })  # fmt: skip
    methods = frozenset({
        "chunk", "split", "unbind", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze",
        "unflatten", "expand", "expand_as", "repeat", "roll", "flip", "movedim", "narrow", "select",
    })  # fmt: skip

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        return walk.moved(node)


class Pointwise(Rule):
    """Every element for itself."""

    covers = "dropout, ReLU, leaky ReLU, abs, minus, a change of type"
    gauges = "passes through"
    spikes = "yes; not behind a slope or a dropout in training"
    modules = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU, nn.LeakyReLU, nn.PReLU)
    functions = frozenset({
        F.relu, torch.relu, F.leaky_relu, F.prelu, F.dropout, torch.neg, operator.neg, torch.abs, torch.clone,
    })  # fmt: skip
    methods = frozenset({
        "relu", "relu_", "neg", "abs", "clone", "contiguous", "detach", "float", "double", "to", "type", "type_as",
    })  # fmt: skip

    def is_for(self, node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> bool:
        # x + 0, as Python's sum() starts
        return super().is_for(node, modules, is_constant) or Join.starts_a_sum(node)

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        return walk.ids[signals[0]]


class Local(Rule):
    """Neighbours within a channel, dimension 1, are combined."""

    covers = "max pool, average pool, padding, upsampling, a fixed filter for each channel"
    gauges = "passes through, one for each channel; an average pool that sums instead has g_out = g_in / k^2"
    spikes = "max pools, copies: yes; an average pool that sums: whole numbers; averages, interpolation, filters: no"
    modules = (
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
        nn.ZeroPad2d, nn.Upsample,
    )  # fmt: skip
    functions = frozenset({
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate, torch.max_pool2d,
    })  # fmt: skip

    def is_for(self, node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> bool:
        if node.target is F.pad:
            return _pads_in_space(node)
        if node.target is F.conv2d:
            return _is_fixed_filter(node, is_constant)
        if not super().is_for(node, modules, is_constant):
            return False
        module = modules[str(node.target)] if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", "")
        return ops.has_channels_second(node, name)

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        ids = walk.ids[signals[0]]
        return walk.pooled(node, walk.along(ids, 1).view(1, -1, *[1] * (ids.ndim - 2)))


class Reduce(Rule):
    """All elements along some dimensions are combined."""

    covers = "mean, sum and extrema over dimensions"
    gauges = "passes through; equal along these dimensions"
    spikes = "extrema: yes; sums: whole numbers; means: no"
    functions = frozenset({torch.mean, torch.sum, torch.amax, torch.amin})
    methods = frozenset({"mean", "sum", "amax", "amin"})

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        ids = walk.ids[signals[0]]
        dims, keepdim = ops.reduced_dims(node, ids.ndim)
        first = ids
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        walk.unite(ids, first)
        return first if keepdim else first.squeeze(dims)


class Join(Rule):
    """Two tensors are added, or one is subtracted from the other."""

    covers = "add, subtract"
    gauges = "operands and result share one gauge"
    spikes = "whole numbers"
    functions = frozenset({operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub})
    methods = frozenset({"add", "add_", "sub", "sub_"})

    def is_for(self, node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> bool:
        return super().is_for(node, modules, is_constant) and _numbers(node) == []

    @classmethod
    def starts_a_sum(cls, node: fx.Node) -> bool:
        """Whether a node is x + 0."""
        targets: Any = cls.methods if node.op == "call_method" else cls.functions
        return node.op != "call_module" and node.target in targets and _numbers(node) == [0]

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        first, second = torch.broadcast_tensors(walk.ids[signals[0]], walk.ids[signals[-1]])
        walk.unite(first, second)
        return first


class Product(Rule):
    """A tensor is multiplied or divided by a number, or by a tensor of gauge 1."""

    covers = "times a number, or a tensor of gauge 1 (a gate)"
    gauges = "passes through"
    spikes = "no"
    functions = frozenset({operator.mul, operator.imul, operator.truediv, operator.itruediv, torch.mul, torch.div})
    methods = frozenset({"mul", "mul_", "div", "div_"})

    def is_for(self, node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> bool:
        numbers = _numbers(node) if super().is_for(node, modules, is_constant) else None
        if numbers is None:
            return False
        is_division = "div" in getattr(node.target, "__name__", str(node.target))
        signals = _signals(node)
        if numbers:
            return node.args[0] in signals or not is_division
        return is_constant(signals[1]) if is_division else any(map(is_constant, signals))

    def follow(self, walk: Walk, node: fx.Node, signals: list[fx.Node]) -> Any:
        scaled = signals[-1] if walk.is_constant(signals[0]) else signals[0]
        return torch.broadcast_tensors(walk.ids[scaled], *[walk.ids[n] for n in signals])[0]


RULES: list[Rule] = [Move(), Pointwise(), Local(), Reduce(), Join(), Product()]
"""Every rule. A new one is a class and a place in this list."""


def rule_of(node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> Rule | None:
    """The rule of an operation without numbers of its own; None where there is none."""
    return next((rule for rule in RULES if rule.is_for(node, modules, is_constant)), None)


def _signals(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta["value"], Tensor)]


def _numbers(node: fx.Node) -> list[Any] | None:
    """The numbers among two arguments; None where there are others, or one that is neither number nor tensor."""
    if len(node.args) != 2 or node.kwargs:
        return None
    signals = _signals(node)
    numbers = [a.meta["value"] if isinstance(a, fx.Node) else a for a in node.args if a not in signals]
    return numbers if all(isinstance(number, (int, float)) for number in numbers) else None


def _pads_in_space(node: fx.Node) -> bool:
    """Whether a pad, in space alone, adds copies of its input, zeros or (before a max pool) infinities."""
    arguments = ops.arguments_of(node, "input", "pad", "mode", "value")
    pad = fx.node.map_arg(arguments["pad"], lambda n: n.meta["value"])
    value = arguments.get("value")
    in_space = len(pad) <= 2 * (node.meta["value"].ndim - 2)
    is_fill_homogeneous = arguments.get("mode", "constant") != "constant" or value in (None, 0, math.inf, -math.inf)
    return in_space and is_fill_homogeneous


def _is_fixed_filter(node: fx.Node, is_constant: Callable[[fx.Node], bool]) -> bool:
    """Whether a convolution filters each channel by fixed numbers, as an anti-aliasing pool does."""
    arguments = ops.arguments_of(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
    groups = fx.node.map_arg(arguments.get("groups", 1), lambda n: n.meta["value"])
    x, weight = arguments["input"], arguments["weight"]
    if arguments.get("bias") is not None or not is_constant(weight):
        return False
    return groups == x.meta["value"].shape[1] == weight.meta["value"].shape[0]
