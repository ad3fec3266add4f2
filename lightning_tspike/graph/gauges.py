"""Which numbers a network can be rescaled by: gauges for the fold, scales that batch norm cancels in training.

A gauge is a positive number per channel of each tensor: true value = g * stored value (see
:mod:`lightning_tspike.folding.absorb`). Here every channel of every tensor of a traced graph gets the id of its gauge,
and ids that must be equal are united. Id 0 is the gauge 1. Nothing is changed; what is done with the result is in
:mod:`lightning_tspike.folding.absorb` and :mod:`lightning_tspike.network.swapping`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from ..neurons import SpikingNeuron
from . import operations as ops
from .layer_rules import exposed, layer_of, layer_rule_of
from .operations import NORMS
from .rules import Move, rule_of
from .ties import is_power_of_two, tied_ids

__all__ = ["GaugeClasses", "Layer", "TrainingScales", "classes_that_sum"]


@dataclass
class Layer:
    """A layer with numbers of its own, and the ids of the gauges on both sides.

    Attributes:
        name: Its name in the model.
        module: Convolution, linear layer, batch norm or neuron.
        inputs: Ids by input channel, shape [C], or [1] where all channels share one.
        outputs: Ids by output channel, likewise.
        nodes: Where it is called, in the order of execution.
    """

    name: str
    module: Any
    inputs: Tensor
    outputs: Tensor
    nodes: list[fx.Node] = field(default_factory=list)


class _Ids:
    """Walk through a graph, give every tensor its ids and unite those that must be equal.

    ``ids[node]`` has as many dimensions as the node's tensor, each of full size or of size 1 where nothing varies
    along it; a list of tensors has a list of ids. Subclasses say what a layer with numbers of its own does.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names = {module: name for name, module in model.named_modules()}
        self.layers: dict[nn.Module, Layer] = {}  # in the order of execution
        self.ids: dict[fx.Node, Any] = {}
        self._count = 1  # id 0 is the gauge 1
        one = torch.zeros(1, dtype=torch.int64)
        self._pairs: list[tuple[Tensor, Tensor]] = [(one, one)]
        for node in graph.nodes:
            self._visit(node)
        self.labels = self._components()  # id -> class

    def layer(self, module: nn.Module, node: fx.Node, x: fx.Node) -> Tensor | None:
        """Ids of the output of a layer that reads ``x``, by channel; None if nothing is known about it."""
        raise NotImplementedError

    def is_pinned(self, ids: Tensor) -> bool:
        """Whether any of these gauges must be 1."""
        return bool((self.labels[ids] == self.labels[0]).any())

    def fresh(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def unite(self, a: Tensor, b: Tensor) -> None:
        a, b = torch.broadcast_tensors(a, b)
        self._pairs.append((a.flatten(), b.flatten()))

    def unite_all(self, *ids: Tensor) -> Tensor:
        """Make all of them one; the result has shape [1]."""
        first = ids[0].flatten()[:1]
        for some in ids:
            self.unite(some, first.view(*[1] * some.ndim))
        return first

    def pin(self, ids: Any) -> None:
        for some in _tensors(ids):
            self.unite(some, torch.zeros((), dtype=torch.int64))

    def along(self, ids: Tensor, axis: int) -> Tensor:
        """Make ids constant along all dimensions but one; the result has shape [C] or [1]."""
        moved = ids.movedim(axis, 0)
        moved = moved.reshape(len(moved), -1)  # [C or 1, rest]
        self.unite(moved, moved[:, :1])
        return moved[:, 0]

    def neuron_ids(self, neuron: SpikingNeuron) -> Tensor:
        """Fresh ids for spikes: one for the layer, or one for each channel that has an amplitude of its own."""
        return self.fresh(neuron.raw_amplitude.numel() if neuron.raw_amplitude is not None else 1)

    def _components(self) -> Tensor:
        rows, columns = (torch.cat([pair[i] for pair in self._pairs]).numpy() for i in (0, 1))
        edges = coo_array((np.ones(len(rows)), (rows, columns)), shape=(self._count, self._count))
        return torch.from_numpy(connected_components(edges, directed=False)[1]).long()

    def _visit(self, node: fx.Node) -> None:
        value = node.meta.get("value")
        signals = [n for n in node.all_input_nodes if n in self.ids]
        if node.op == "output":
            for n in signals:
                self.pin(self.ids[n])
        elif next(_tensors(value), None) is None:
            if not ops.only_looks(node):  # it may write into a tensor, or make a number of one
                for n in signals:
                    self.pin(self.ids[n])
        else:
            result = self._follow(node, signals) if signals and node.op not in ("placeholder", "get_attr") else None
            if result is None:  # an input, a constant, or an operation without a rule: gauge 1 on both sides
                for n in signals:
                    self.pin(self.ids[n])
                if (found := layer_of(node, self.modules)) is not None and found[0] in self.layers:
                    self.pin(self.layers[found[0]].outputs)
                result = _map(lambda v: torch.zeros([1] * v.ndim, dtype=torch.int64), value)
            self.ids[node] = result

    def _follow(self, node: fx.Node, signals: list[fx.Node]) -> Any:
        """Ids of what an operation gives; None where nothing is known about it."""
        value = node.meta["value"]
        try:
            result = self._apply(node, signals)
        except Exception:  # what a model does with its tensors, stand-ins for them may refuse
            return None
        if node.meta["hooked"] or result is None:
            return None
        pairs = zip(_tensors(result), _tensors(value), strict=True)
        # a conversion to whole numbers rounds; a rule must not be wrong about the shape
        fits = all(i.ndim == v.ndim and v.is_floating_point() and _broadcasts(i.shape, v.shape) for i, v in pairs)
        return result if fits else None

    def _apply(self, node: fx.Node, signals: list[fx.Node]) -> Any:
        if (found := layer_of(node, self.modules)) is not None:
            module, x = found
            by_channel = self.layer(module, node, x)
            if by_channel is None:
                return None
            shape = [1] * node.meta["value"].ndim
            shape[layer_rule_of(module).channel_axis(module)] = len(by_channel)
            return by_channel.view(shape)
        rule = rule_of(node, self.modules, self.is_constant)
        are_tensors = all(isinstance(n.meta["value"], Tensor) for n in (node, *signals))
        if rule is None or not (are_tensors or isinstance(rule, Move)):  # a pool that returns indices as well
            return None
        return rule.follow(self, node, signals)

    def pooled(self, node: fx.Node, channels: Tensor) -> Tensor:
        """Ids behind an operation within channels."""
        return channels

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a tensor has the gauge 1 whatever is united later: an input, a parameter, a gate."""
        return not any(bool(ids.any()) for ids in _tensors(self.ids[node]))

    def moved(self, node: fx.Node) -> Any:
        """Move ids as the operation moves elements: by the operation itself."""

        def stand_in(n: fx.Node) -> Any:
            if n not in self.ids:
                return n.meta["value"]
            # whole numbers and masks say where to move; not every operation moves integers
            return _map(
                lambda v, i: i.double().expand(v.shape).contiguous() if v.is_floating_point() else v,
                n.meta["value"],
                self.ids[n],
            )

        args, kwargs = fx.node.map_arg(node.args, stand_in), fx.node.map_arg(node.kwargs, stand_in)
        return _map(lambda moved: _compressed(moved.long()), ops.run(node, self.modules, args, kwargs))


class GaugeClasses(_Ids):
    """Channels that must share one gauge in the fold; what an operation ties, its rule says (table in docs/fold.md).

    Args:
        graph: From :func:`lightning_tspike.graph.trace`, of a model whose activations are neurons.
        model: That model.
        sum_pools: Names of average pools that are to sum: the gauge takes up their 1 / k^2.

    Attributes:
        layers: Layers that absorb the gauges on both sides.
        labels: Class of every id.
        pools: Ids on both sides of each of ``sum_pools``, and the factor between the gauges.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module, sum_pools: Collection[str] = ()) -> None:
        self._owners = ops.count_owners(model)
        self._exposed = exposed(graph, model)
        self._sum_pools = sum_pools
        self.pools: dict[str, tuple[Tensor, Tensor, float]] = {}
        super().__init__(graph, model)
        self._tied = self.labels[tied_ids(graph, self.modules, self.ids, self.is_constant)]

    def neurons(self) -> Iterator[tuple[SpikingNeuron, Layer]]:
        """The neurons that are called, in the order of execution."""
        return ((m, layer) for m, layer in self.layers.items() if isinstance(m, SpikingNeuron))

    def reads_spikes(self, node: fx.Node) -> bool:
        """Whether any channel of what a node reads is in a class with spikes."""
        spikes = {label for _, layer in self.neurons() for label in self.labels[layer.outputs].tolist()}
        return not spikes.isdisjoint(self.labels[self.ids[node.all_input_nodes[0]]].flatten().tolist())

    def layer_before(self, layer: Layer) -> Layer | None:
        """The layer whose output this one reads, if nothing else reads it and both are called once."""
        before = layer.nodes[0].all_input_nodes[0]
        for other in self.layers.values():
            if other.nodes == [before] and len(layer.nodes) == len(before.users) == 1:
                return other
        return None

    def gauges(self) -> Tensor:
        """Gauge of every id, float64.

        That is the amplitude that flows into its class, or 1 where there is none, several different ones, one that is
        no positive number, one that is no power of two where there are ties, or where the class must have 1.
        """
        classes = int(self.labels.max()) + 1
        low = torch.full((classes,), math.inf, dtype=torch.float64)
        high = torch.full((classes,), -math.inf, dtype=torch.float64)
        for neuron, layer in self.neurons():
            labels = self.labels[layer.outputs]
            amplitude = torch.as_tensor(neuron.amplitude).detach().to("cpu", torch.float64).expand(len(labels))
            low.scatter_reduce_(0, labels, amplitude, "amin")
            high.scatter_reduce_(0, labels, amplitude, "amax")
        gauges = torch.where((low == high) & (low > 0) & low.isfinite(), low, 1.0)
        gauges[self._tied] = torch.where(is_power_of_two(gauges[self._tied]), gauges[self._tied], 1.0)
        gauges[self.labels[0]] = 1.0
        for inputs, outputs, factor in self.pools.values():
            gauges[self.labels[outputs]] = gauges[self.labels[inputs]] * factor
        return gauges[self.labels]

    def impossible_pools(self) -> set[str]:
        """Those of ``sum_pools`` that must stay average pools.

        Their class has a gauge from elsewhere, or has ties, where division by anything but a power of two matters.
        """
        taken = {int(self.labels[0])}
        for _, layer in self.neurons():
            taken.update(self.labels[layer.outputs].tolist())
        gauges = self.gauges()
        return {
            name
            for name, (inputs, outputs, factor) in self.pools.items()
            if not taken.isdisjoint(self.labels[outputs].tolist())
            or not torch.equal(gauges[outputs], gauges[inputs] * factor)
            or (self.has_ties(outputs) and not is_power_of_two(torch.tensor(factor)))
        }

    def has_ties(self, ids: Tensor) -> bool:
        """Whether spikes with any of these gauges can cancel in a neuron, see :mod:`lightning_tspike.graph.ties`."""
        return bool(torch.isin(self.labels[ids], self._tied).any())

    def layer(self, module: nn.Module, node: fx.Node, x: fx.Node) -> Tensor | None:
        if module in self._exposed or not layer_rule_of(module).can_absorb(module, self._owners):
            return None
        axis = layer_rule_of(module).channel_axis(module)
        inputs = self.along(self.ids[x], axis)
        if module in self.layers:
            # Called at several places it has only one set of numbers: inputs share their gauges, and so do outputs.
            layer = self.layers[module]
            if len({len(inputs), len(layer.inputs)} - {1}) > 1:
                self.unite_all(inputs, layer.inputs)
            else:
                self.unite(inputs, layer.inputs)
        else:
            outputs = (
                self.neuron_ids(module)
                if isinstance(module, SpikingNeuron)
                else self.fresh(node.meta["value"].shape[axis])
            )
            layer = self.layers[module] = Layer(self.names[module], module, inputs, outputs)
        layer.nodes.append(node)
        return layer.outputs

    def pooled(self, node: fx.Node, channels: Tensor) -> Tensor:
        if node.target not in self._sum_pools:
            return channels
        inputs, outputs = channels.flatten(), self.fresh(channels.numel())
        module: Any = self.modules[str(node.target)]
        self.pools[str(node.target)] = (inputs, outputs, 1 / ops.divisor_of(module))
        return outputs.view(channels.shape)


class TrainingScales(_Ids):
    """Channels that scale together in training mode, to tell which amplitudes do anything there.

    A convolution or linear layer without bias passes a common scale of its inputs on; a norm in training mode divides
    it out (its eps aside), together with a bias right before it. A neuron's threshold, a sum with something that does
    not scale, and the logits pin the scale: there it matters.
    """

    def layer(self, module: nn.Module, node: fx.Node, x: fx.Node) -> Tensor | None:
        return layer_rule_of(module).scale(self, module, node, x)

    def emitted(self, neuron: SpikingNeuron, ids: Tensor) -> Tensor:
        """Ids of a neuron's spikes."""
        if neuron not in self.layers:
            self.layers[neuron] = Layer(self.names[neuron], neuron, ids, self.neuron_ids(neuron))
        return self.layers[neuron].outputs

    def is_norm(self, node: fx.Node) -> bool:
        """Whether a node is a batch norm."""
        found = layer_of(node, self.modules)
        return found is not None and isinstance(found[0], NORMS)

    def cancelled(self) -> set[SpikingNeuron]:
        """The neurons whose amplitude changes nothing in training mode: a norm divides it out everywhere it goes."""
        scales: dict[int, set[tuple[int, int]]] = {int(self.labels[0]): {(-1, 0), (-1, 1)}}  # class -> amplitudes in it
        for _, key, labels in self._amplitudes():
            for channel, label in enumerate(labels):
                scales.setdefault(label, set()).add((key, channel))
        live = {
            key
            for neuron, key, labels in self._amplitudes()
            if neuron.is_coupled or any(len(scales[label]) > 1 for label in labels)
        }
        return {neuron for neuron, key, _ in self._amplitudes() if key not in live}

    def _amplitudes(self) -> Iterator[tuple[SpikingNeuron, int, list[int]]]:
        """Each neuron, which parameter its amplitude is, and the class of each of its channels."""
        for layer in self.layers.values():
            neuron: SpikingNeuron = layer.module
            key = id(neuron if neuron.raw_amplitude is None else neuron.raw_amplitude)
            yield neuron, key, self.labels[layer.outputs].tolist()


def classes_that_sum(graph: fx.Graph, model: nn.Module) -> GaugeClasses:
    """The classes where every average pool of spikes sums that can; arguments as for :class:`GaugeClasses`."""
    classes = GaugeClasses(graph, model)
    calls = Counter(node.target for node in graph.nodes)
    modules = dict(model.named_modules())
    pools = {
        node.target
        for node in graph.nodes
        if node.op == "call_module" and calls[node.target] == 1
        if ops.sums_whole_windows(modules[node.target]) and classes.reads_spikes(node)
    }
    while impossible := (classes := GaugeClasses(graph, model, pools)).impossible_pools():
        pools -= impossible
    return classes


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _map(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply a function to a tensor, or to each tensor of a nested list; what is no tensor (None) stays."""
    if isinstance(value, (tuple, list)):
        return [_map(function, *items) for items in zip(value, *others, strict=True)]
    return function(value, *others) if isinstance(value, Tensor) else value


def _broadcasts(small: torch.Size, shape: torch.Size) -> bool:
    return all(a in (1, b) for a, b in zip(small, shape, strict=True))


def _compressed(ids: Tensor) -> Tensor:
    """Drop to size 1 every dimension along which nothing varies."""
    for dim in range(ids.ndim):
        if ids.shape[dim] and bool((ids == ids.narrow(dim, 0, 1)).all()):
            ids = ids.narrow(dim, 0, 1)
    return ids
