"""Where spikes go: which convolutions and linear layers read those of which neurons, and through how many synapses.

A graph is followed as if every neuron fired +1 at every time step: how many spikes then meet in each element of each
tensor. The gradient of what a layer reads by what a neuron sends says how many synapses each spike reaches (its
fan-out), whatever lies between: shortcuts, branches, concatenations, pools that sum.

    operation                              what becomes of spikes
    moves, dropout, signs, padding         they stay spikes
    sum                                    they add up
    max pool, average pool that can sum    of one layer's spikes: counted behind it; of several layers': they add up
    anything else                          real numbers: no spikes any more

A layer that reads x does mean |x| times its multiply-accumulates (:mod:`lightning_tspike.analysis.energy`), so each
of its inputs stands for as many of them, at the border of an image too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..neurons import SpikingNeuron
from . import operations as ops
from .activations import owner_of
from .gauges import classes_that_sum
from .layer_rules import WeightedRule
from .rules import Join, Local, Move, Pointwise, Reduce, rule_of

__all__ = ["Pools", "Route", "SpikeRoutes", "spike_routes"]

Pools: TypeAlias = tuple[Callable[[Tensor], Tensor], ...]
"""What spikes [T*B, ...] go through before they are counted, one after the other."""

_SLOPES = {F.leaky_relu, F.prelu}


@dataclass(frozen=True)
class Route:
    """The spikes of one call of a neuron layer, behind the same max pools.

    Attributes:
        neuron: Name of the layer.
        call: Which of its calls, from 0, in the order of execution.
        pools: Which of :attr:`SpikeRoutes.pools` of that layer.
        synapses: How many synapses they reach, by channel (dimension 1), per image and over all time steps: so many
            synaptic operations are done if all of them are -1 or +1. Shape [C], float64.
    """

    neuron: str
    call: int
    pools: int
    synapses: Tensor


@dataclass(frozen=True)
class SpikeRoutes:
    """Where the spikes of a network go.

    Attributes:
        routes: In the order of execution; spikes that no convolution or linear layer reads have none.
        pools: For each neuron layer with a route: the pools behind which its spikes are read.
        layers: Names of the convolutions and linear layers that read spikes, in the order of execution.
        macs: Their multiply-accumulates per image, were nothing skipped, over all time steps.
    """

    routes: tuple[Route, ...]
    pools: Mapping[str, tuple[Pools, ...]]
    layers: tuple[str, ...]
    macs: float

    @property
    def neurons(self) -> tuple[str, ...]:
        """Names of the neuron layers with a route, in the order of execution."""
        return tuple(dict.fromkeys(route.neuron for route in self.routes))


def spike_routes(graph: fx.Graph, model: nn.Module) -> SpikeRoutes:
    """Follow the spikes of a network.

    Args:
        graph: From :func:`lightning_tspike.graph.trace`, on one image [1, ...].
        model: What was traced.
    """
    return _Walk(graph, model).result()


class _Source(NamedTuple):
    """Spikes that are counted by themselves: what a neuron sends, or that behind a max pool."""

    neuron: str
    call: int
    pools: tuple[fx.Node, ...]
    spikes: Tensor  # ones, of which the gradient is taken


class _Walk:
    """Gives every tensor that holds spikes, or sums of them, the number of spikes that meet in each element."""

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names = {module: name for name, module in model.named_modules()}
        self._graph, self._model = graph, model
        self.sources: list[_Source] = []
        self.counts: dict[fx.Node, Any] = {}  # tensors, or lists of them where a node gives several
        self.single: dict[fx.Node, _Source] = {}  # nodes that hold a source's spikes one to one
        self.synops: dict[str, Tensor] = {}  # of the weighted layers, if all neurons fire at every time step
        self.macs = 0.0
        with torch.enable_grad():
            for node in graph.nodes:
                self._visit(node)

    def result(self) -> SpikeRoutes:
        spikes = [source.spikes for source in self.sources]
        total = torch.stack(list(self.synops.values())).sum() if self.synops else torch.zeros(())
        reached = torch.autograd.grad(total, spikes, allow_unused=True) if self.synops else ()
        routes, pools = [], defaultdict[str, list[tuple[fx.Node, ...]]](list)
        for source, synapses in zip(self.sources, reached, strict=False):
            if synapses is None or not synapses.any():
                continue
            known = pools[source.neuron]
            if source.pools not in known:
                known.append(source.pools)
            by_channel = synapses.sum([dim for dim in range(synapses.ndim) if dim != 1])
            routes.append(Route(source.neuron, source.call, known.index(source.pools), by_channel))
        made = {name: tuple(tuple(map(self._pool, nodes)) for nodes in chains) for name, chains in pools.items()}
        return SpikeRoutes(tuple(routes), made, tuple(self.synops), self.macs)

    def _visit(self, node: fx.Node) -> None:
        value = node.meta.get("value")
        if node.op == "call_module" and isinstance(neuron := self.modules[str(node.target)], SpikingNeuron):
            name = self.names[neuron]
            call = sum(source.neuron == name and not source.pools for source in self.sources)
            self.counts[node] = self._start(node, name, call, ())
        elif (layer := _weighted(node, self.modules)) is not None:
            x = self.counts.get(ops.input_of(node))
            if isinstance(x, Tensor) and isinstance(value, Tensor):
                macs, name = ops.dense_macs(layer, value), self.names[layer]
                self.synops[name] = self.synops.get(name, torch.zeros((), dtype=torch.float64)) + macs * x.mean()
                self.macs += macs
        elif not node.meta["hooked"] and (counts := self._follow(node)) is not None:
            self.counts[node] = counts

    def _start(self, node: fx.Node, neuron: str, call: int, pools: tuple[fx.Node, ...]) -> Tensor:
        """The spikes of a new source: what a node gives."""
        spikes = torch.ones(node.meta["value"].shape, dtype=torch.float64, requires_grad=True)
        self.single[node] = _Source(neuron, call, pools, spikes)
        self.sources.append(self.single[node])
        return spikes

    def _follow(self, node: fx.Node) -> Any:
        """The counts of what an operation gives; None where that is no spikes."""
        signals = [n for n in node.all_input_nodes if _is_real(n.meta["value"])]
        rule = rule_of(node, self.modules, lambda n: n not in self.counts) if signals else None
        if isinstance(rule, Pointwise):
            return self._passed(node, signals[0])
        if rule is None or any(n not in self.counts for n in signals):
            return None
        if isinstance(rule, Move):
            return self._run(node)
        if not isinstance(node.meta["value"], Tensor):  # a pool that returns indices as well
            return None
        if isinstance(rule, Join):
            return self.counts[signals[0]] + self.counts[signals[-1]]
        return self._pooled(node, signals[0]) if isinstance(rule, (Local, Reduce)) else None

    def _passed(self, node: fx.Node, x: fx.Node) -> Any:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, (nn.LeakyReLU, nn.PReLU)) or node.target in _SLOPES:
            return None
        if x in self.single:
            self.single[node] = self.single[x]
        return self.counts.get(x)

    def _pooled(self, node: fx.Node, x: fx.Node) -> Any:
        name = _name(node, self.modules)
        module: Any = self.modules[str(node.target)] if node.op == "call_module" else None
        mode = ops.arguments_of(node, "input", "size", "scale_factor", "mode").get("mode", "nearest")
        if isinstance(module, (nn.AvgPool2d, nn.AvgPool3d)):
            if node.target not in self._sum_pools:
                return None
            factor = ops.divisor_of(module)
        elif "max" in name or (name == "pad" and not bool(node.meta["value"].isfinite().all())):
            factor = 1
        else:
            is_copy = name in ("sum", "pad", "zeropad2d") or (name == "interpolate" and mode == "nearest")
            return self._run(node) if is_copy or getattr(module, "mode", None) == "nearest" else None
        if x in self.single:  # counted behind it
            source = self.single[x]
            spikes = self._start(node, source.neuron, source.call, (*source.pools, node))
            if factor != 1:  # sums, no longer the spikes themselves
                del self.single[node]
            return factor * spikes
        return self._run(node) * (_window(node, module, x) if factor == 1 else factor)

    @cached_property
    def _sum_pools(self) -> Collection[str]:
        return classes_that_sum(self._graph, self._model).pools

    def _run(self, node: fx.Node) -> Any:
        """What an operation gives, run on the counts."""

        def stand_in(n: fx.Node) -> Any:
            value = n.meta["value"]
            if n not in self.counts:
                return value.cpu() if isinstance(value, Tensor) else value
            counts = self.counts[n]
            return counts.contiguous() if isinstance(counts, Tensor) else counts  # for views

        return ops.run(node, self.modules, *fx.node.map_arg((node.args, node.kwargs), stand_in))

    def _pool(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """The pool of a node as a function of what it reads."""
        if node.op == "call_module":
            return self.modules[str(node.target)].forward
        kwargs = fx.node.map_arg(node.kwargs, lambda n: n.meta["value"])
        args = fx.node.map_arg(node.args[1:], lambda n: n.meta["value"])
        kwargs.pop("input", None)
        if node.op == "call_method":
            return partial(_call_method, str(node.target), args, kwargs)
        function: Any = node.target
        return partial(_call_function, function, args, kwargs)


def _weighted(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """The convolution or linear layer that a node calls; None where it calls none."""
    if node.op == "call_module":
        module = modules[str(node.target)]
    elif node.op == "call_function" and node.target in WeightedRule.functions:
        module = modules[owner_of(node)]  # one that computes its weights, or pads by itself
    else:
        return None
    return module if isinstance(module, ops.WEIGHTED) else None


def _window(node: fx.Node, module: Any, x: fx.Node) -> float:
    """How many numbers a max pool takes at once."""
    value = node.meta["value"]
    given = ops.arguments_of(node, "input", "kernel_size").get("kernel_size")
    size = getattr(module, "kernel_size", given if "max_pool" in str(node.target) else None)
    if size is None:  # it says what comes out, or along which dimensions it runs; a pad takes them one by one
        return max(1.0, x.meta["value"].numel() / value.numel())
    numbers = torch.tensor(size).flatten().tolist()
    return math.prod(numbers) if len(numbers) > 1 else numbers[0] ** (value.ndim - 2)


def _name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower()
    return str(getattr(node.target, "__name__", node.target))


def _is_real(value: Any) -> bool:
    """Whether a node's value is made of real numbers, which may be spikes, and not of sizes or indices."""
    if isinstance(value, (tuple, list)):
        return any(map(_is_real, value))
    return isinstance(value, Tensor) and value.is_floating_point()


def _call_function(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any, x: Tensor) -> Tensor:
    return function(x, *args, **kwargs)


def _call_method(name: str, args: tuple[Any, ...], kwargs: Any, x: Tensor) -> Tensor:
    return getattr(x, name)(*args, **kwargs)
