"""From the graph of a spiking network to that of its integer runtime.

Every tensor of the graph gets a form, what stands for it in the new graph (table in :mod:`.forms`).

A neuron takes a ``Total`` as it is: it adds up in its own pass over memory. A batch norm behind a layer with int8
weights becomes part of that layer's scale and bias. A layer that reads bytes takes their gauge into its weights.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph import operations as ops
from ..graph.layer_rules import for_weights, layer_of
from ..graph.operations import NORMS
from ..graph.rules import Join, Local, Move, Pointwise, Reduce, rule_of
from ..neurons import BinaryLIF, Quantized, SpikingNeuron, TernaryIF, TernaryLIF
from .forms import ONE, ZERO, Bytes, Form, Mean, Real, Total, is_same_number, product
from .integer_layers import (
    LARGEST_BYTE,
    IntegerConv,
    IntegerHead,
    IntegerLinear,
    IntegerMaxPool,
    IntegerNeuron,
    IntegerPool,
    IntegerSameSize,
    IntegerTotal,
    IntegerWeighted,
)
from .pools import pool_options
from .rebuilding import Rebuilding

__all__ = ["LoweringError", "lower"]

_NEURONS = (TernaryLIF, TernaryIF, Quantized, BinaryLIF)


class LoweringError(RuntimeError):
    """The network has no integer form at all; the message says why."""


def lower(graph: fx.Graph, model: nn.Module) -> tuple[fx.GraphModule, dict[str, str | None]]:
    """Make the integer runtime of a network.

    Args:
        graph: From :meth:`lightning_tspike.SpikingNetwork.trace`.
        model: The network's ``model``, in eval mode; what stays as it is becomes part of the result.

    Returns:
        The new model, and what became of every layer with weights, neuron and other operation on spikes where it is
        called: by name, None for an integer form, else why it stays in float32.

    Raises:
        LoweringError: It cannot be done.
    """
    return _Lowering(model).run(graph)


class _Lowering(Rebuilding):
    """A walk through a graph that builds the other one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.forms: dict[fx.Node, Form] = {}
        self.reals: dict[fx.Node, fx.Node] = {}  # node of the old graph -> what it stands for, as float32
        self.weighted: dict[fx.Node, IntegerWeighted] = {}  # by its call in the new graph
        self.report: dict[str, str | None] = {}
        self.why = ""

    def run(self, graph: fx.Graph) -> tuple[fx.GraphModule, dict[str, str | None]]:
        for node in graph.nodes:
            if node.op == "output":
                self.graph.output(fx.node.map_arg(node.args[0], self._real))
                continue
            self.why = "no integer form"
            form = self._lower(node) if isinstance(node.meta["value"], (Tensor, tuple, list)) else None
            is_passed_on = any(form is self.forms.get(n) for n in node.all_input_nodes)
            if self._is_reported(node) and not is_passed_on:
                self.report[_name(node)] = None if form is not None else self.why
            if form is None:
                form = Real(self._copy(node))
            self.forms[node] = form
            if isinstance(form, (Total, Mean)) and len(node.users) > 1:  # computed once, not once for each of them
                self.forms[node] = Real(self._real(node))
        return fx.GraphModule(self.parts, self.graph), self.report

    def _is_reported(self, node: fx.Node) -> bool:
        reads_bytes = any(isinstance(self.forms.get(n), Bytes) for n in node.all_input_nodes)
        found = layer_of(node, self.modules)
        return reads_bytes or (found is not None and not isinstance(found[0], NORMS))

    # ------------------------------------------------------------------------------------------- what a node becomes

    def _lower(self, node: fx.Node) -> Form | None:
        """The form of an operation; None where it stays as it is (``self.why``)."""
        if node.op in ("placeholder", "get_attr") or node.meta["hooked"]:
            return None
        if (found := layer_of(node, self.modules)) is not None:
            layer, x = found
            if isinstance(layer, SpikingNeuron):
                return self._neuron(node, layer, x)
            if isinstance(layer, NORMS):
                return self._norm(layer, x)
            return self._weighted(node, layer, x)
        match rule_of(node, self.modules, lambda n: False):
            case Join():
                return self._add(node)
            case Move():
                return self._move(node)
            case Pointwise():
                return self._pointwise(node)
            case Local():
                return self._local(node)
            case Reduce():
                return self._reduce(node)
        return None

    def _neuron(self, node: fx.Node, neuron: SpikingNeuron, x: fx.Node) -> Form | None:
        if type(neuron) not in _NEURONS:
            self.why = f"neurons of type {type(neuron).__name__}"
            return None
        if x.meta["value"].ndim not in (2, 4):
            self.why = f"neurons on {x.meta['value'].ndim} dimensions"
            return None
        total = self._as_total(x)
        call = self.call(_name(node), IntegerNeuron(neuron, *self._sum_of(total, x)), _nodes(total))
        amplitude = torch.as_tensor(neuron.amplitude).detach().double()
        lowest = -neuron.levels if neuron.is_ternary else 0
        return Bytes(call, -lowest, lowest, neuron.levels, amplitude)

    def _norm(self, norm: Any, x: fx.Node) -> Form | None:
        if norm.running_mean is None or norm.running_var is None or x.meta["value"].ndim not in (2, 4):
            return None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach().double()
        total = self._as_total(x)
        (first, factor), *others = total.terms
        layer = self.weighted.get(first.node)
        if layer is not None and not others and factor is ONE and total.shift is ZERO and len(x.users) == 1:
            layer.rescale(scale, shift)
            return first
        return Total(tuple((form, factor * scale) for form, factor in total.terms), total.shift * scale + shift)

    def _weighted(self, node: fx.Node, layer: Any, x: fx.Node) -> Form | None:
        form = self.forms[x]
        if not isinstance(form, (Bytes, Mean)):
            self.why = "reads real numbers"
            return None
        if node.op != "call_module":
            self.why = "called as a function"
            return None
        if isinstance(form, Bytes) and form.zero_point + form.high > LARGEST_BYTE:
            self.why = f"reads bytes above {LARGEST_BYTE}"
            return None
        if isinstance(form, Mean):
            if not (isinstance(layer, nn.Linear) and form.is_flat):
                self.why = "reads means"
                return None
            maps = form.maps
            head = IntegerHead(_with_gauge(layer, maps.gauge), layer.bias, maps.zero_point, maps.zero_point + maps.high)
            return Real(self.call(_name(node), head, [maps.node]))
        weight = _with_gauge(layer, form.gauge)
        if isinstance(layer, nn.Linear) and x.meta["value"].ndim == 2:
            new: IntegerWeighted = IntegerLinear(weight, layer.bias, form.zero_point)
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            padding = _padding(layer)
            if padding is None:
                self.why = "padding='same' of an even kernel"
                return None
            largest = max(-form.low, form.high)
            new = IntegerConv(weight, layer, padding, form.zero_point, largest, x.meta["value"].shape[2:])
        else:
            self.why = f"{type(layer).__name__} on {x.meta['value'].ndim} dimensions, or its padding"
            return None
        call = self.call(_name(node), new, [form.node])
        self.weighted[call] = new
        return Real(call)

    def _add(self, node: fx.Node) -> Form | None:
        first, second = (a for a in node.args if isinstance(a, fx.Node))
        if first.meta["value"].shape != second.meta["value"].shape or first.meta["value"].ndim not in (2, 4):
            return None
        a, b = self.forms[first], self.forms[second]
        is_difference = "sub" in getattr(node.target, "__name__", str(node.target))
        if isinstance(a, Bytes) and isinstance(b, Bytes) and not is_difference and is_same_number(a.gauge, b.gauge):
            zero_point, low, high = a.zero_point + b.zero_point, a.low + b.low, a.high + b.high
            if zero_point + high <= LARGEST_BYTE:
                return Bytes(self.graph.call_function(operator.add, (a.node, b.node)), zero_point, low, high, a.gauge)
        a, b = self._as_total(first), self._as_total(second)
        sign = -ONE if is_difference else ONE
        seconds = tuple((form, product(scale, sign)) for form, scale in b.terms)
        return Total((*a.terms, *seconds), a.shift if b.shift is ZERO else a.shift + sign * b.shift)

    def _move(self, node: fx.Node) -> Form | None:
        forms = [self.forms[n] for n in node.all_input_nodes]
        if isinstance(forms[0], Mean):
            is_flatten = node.op == "call_module" or node.target in (torch.flatten, "flatten")
            return replace(forms[0], is_flat=True) if is_flatten and node.meta["value"].ndim == 2 else None
        movable = [f for f in forms if isinstance(f, Bytes) and f.gauge.numel() == 1]
        if not movable or len(movable) < len(forms) or any(f.gauge != movable[0].gauge for f in movable):
            return None
        zero_point = max(f.zero_point for f in movable)
        low, high = min(f.low for f in movable), max(f.high for f in movable)
        if zero_point + high > LARGEST_BYTE:
            return None
        moved = {}
        for n, form in zip(node.all_input_nodes, movable, strict=True):
            missing = zero_point - form.zero_point
            moved[n] = self.graph.call_function(operator.add, (form.node, missing)) if missing else form.node
        return Bytes(self.keep(node, moved.__getitem__), zero_point, low, high, movable[0].gauge)

    def _pointwise(self, node: fx.Node) -> Form | None:
        x = node.all_input_nodes[0]
        form = self.forms[x]
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        is_dropout = isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d))
        if isinstance(module, nn.Identity) or is_dropout or node.target in ("contiguous", "detach"):
            return form
        is_relu = isinstance(module, nn.ReLU) or node.target in (F.relu, torch.relu, "relu", "relu_")
        if is_relu and isinstance(form, Bytes):
            if form.low >= 0:
                return form
            clamped = self.graph.call_function(torch.clamp, (form.node,), {"min": form.zero_point})
            return replace(form, node=clamped, low=0)
        return None

    def _local(self, node: fx.Node) -> Form | None:
        x = node.all_input_nodes[0]
        form = self.forms[x]
        if not isinstance(form, Bytes) or x.meta["value"].ndim != 4:
            return None
        given = pool_options(node, self.modules)
        if given is None:
            return None
        if given.size is not None:  # it changes nothing
            return replace(form, node=self.call(_name(node), IntegerSameSize(given.size), [form.node]))
        if given.is_max:
            return replace(form, node=self.call(_name(node), IntegerMaxPool(given), [form.node]))
        if given.window is None:
            return Mean(form, is_flat=False)
        kernel, _, _ = given.window
        size, divisor = kernel[0] * kernel[1], given.divisor
        if size * (form.zero_point + form.high) <= LARGEST_BYTE:
            pool = IntegerPool(given.window, form.zero_point, None, is_whole=given.ceil_mode)
            call = self.call(_name(node), pool, [form.node])
            return Bytes(call, size * form.zero_point, size * form.low, size * form.high, form.gauge / divisor)
        pool = IntegerPool(given.window, form.zero_point, 1 / divisor, is_whole=given.ceil_mode)
        call = self.call(_name(node), pool, [form.node])
        return Total(((Real(call), form.gauge),), ZERO)

    def _reduce(self, node: fx.Node) -> Form | None:
        x = node.all_input_nodes[0]
        form, ndim = self.forms[x], x.meta["value"].ndim
        dims, keepdim = ops.reduced_dims(node, ndim)
        is_mean = node.target in (torch.mean, "mean")
        if not isinstance(form, Bytes) or not is_mean or ndim != 4 or sorted(dims) != [2, 3]:
            return None
        return Mean(form, is_flat=not keepdim)

    # ------------------------------------------------------------------------------------------- nodes of the new graph

    def _copy(self, node: fx.Node) -> fx.Node:
        """The operation as it is, on float32."""
        if _works_in_place(node, self.modules) and any(len(n.users) > 1 for n in node.all_input_nodes[:1]):
            raise LoweringError(f"{node.target} at {node.meta['line']} changes a tensor that others read as well")
        return self.keep(node, self._real)

    def _real(self, node: fx.Node) -> fx.Node:
        """What a node of the old graph stands for, as float32."""
        form = self.forms[node]
        if isinstance(form, Real):
            return form.node
        if node not in self.reals:
            self.reals[node] = self._total(self._as_total(node), node)
        return self.reals[node]

    def _total(self, total: Total, node: fx.Node) -> fx.Node:
        (form, scale), *others = total.terms
        if isinstance(form, Real) and not others and scale is ONE and total.shift is ZERO:
            return form.node
        return self.call(f"{_name(node)}_total", IntegerTotal(*self._sum_of(total, node)[1:]), _nodes(total))

    def _as_total(self, node: fx.Node) -> Total:
        form = self.forms[node]
        if isinstance(form, Mean):
            maps = form.maps
            call = self.call(f"{_name(node)}_mean", IntegerPool(None, maps.zero_point, 1.0), [maps.node])
            if form.is_flat:
                call = self.graph.call_function(torch.flatten, (call, 1))
            return Total(((Real(call), maps.gauge),), ZERO)
        return form if isinstance(form, Total) else Total(((form, ONE),), ZERO)

    def _sum_of(self, total: Total, x: fx.Node) -> tuple[int, list[Tensor | None], list[int], Tensor | None]:
        """Channels, scales, zero points and shift of a sum that stands for ``x``."""
        channels = x.meta["value"].shape[1]

        def numbers(value: Tensor, neutral: float) -> Tensor | None:
            return None if bool((value == neutral).all()) else value.expand(channels)

        scales = [numbers(s * f.gauge if isinstance(f, Bytes) else s, 1.0) for f, s in total.terms]
        zero_points = [f.zero_point if isinstance(f, Bytes) else 0 for f, _ in total.terms]
        return channels, scales, zero_points, numbers(total.shift, 0.0)


def _nodes(total: Total) -> list[fx.Node]:
    return [form.node for form, _ in total.terms]


def _name(node: fx.Node) -> str:
    """Of what a node calls: of a module its own, else that of the operation in the graph."""
    return str(node.target) if node.op == "call_module" else node.name


def _with_gauge(layer: Any, gauge: Tensor) -> Tensor:
    """Weights that read whole numbers, where those of ``layer`` read gauge times them."""
    return layer.weight.detach().double() * for_weights(layer, gauge)


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(r % 2 for r in reach) else (reach[0] // 2, reach[1] // 2)
    padding: Any = conv.padding
    return padding


def _works_in_place(node: fx.Node, modules: dict[str, Any]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = node.op == "call_function" and node.target in (
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.setitem,
    )
    return in_place or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
