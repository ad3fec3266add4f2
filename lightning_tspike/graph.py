"""What a network's tensors do: tracing, and the classes of tensors that must share one gauge.

A gauge is a positive number g per tensor: true value = g * stored value (see :mod:`lightning_tspike.fold`). This file
finds which tensors must have the same one, and which must keep g = 1; it changes nothing.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .neurons import TernaryLIF

__all__ = ["GaugeClasses", "TraceError", "static_encoders", "trace"]

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Positively homogeneous: f(g * x) = g * f(x) for g > 0, so the gauge passes through.
_HOMOGENEOUS_MODULES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.LeakyReLU, nn.ZeroPad2d,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_HOMOGENEOUS_FUNCTIONS = {
    torch.flatten, torch.mean, torch.sum, torch.relu, torch.neg, operator.neg, operator.getitem, torch.permute,
    torch.transpose, torch.reshape, torch.unflatten, torch.squeeze, torch.unsqueeze, F.relu, F.dropout, F.leaky_relu,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
_HOMOGENEOUS_METHODS = {
    "flatten", "mean", "sum", "relu", "neg", "permute", "transpose", "reshape", "view", "unflatten", "squeeze",
    "unsqueeze", "contiguous", "expand", "repeat", "clone", "float", "double", "to",
}  # fmt: skip
# Results that are sums or collections of their operands: all share one gauge.
_JOINS = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
    torch.add,
    torch.sub,
    torch.cat,
    torch.stack,
    torch.concat,
}
_JOIN_METHODS = {"add", "add_", "sub", "sub_"}

# Values of nodes that ask for a shape or a type: no gauge can reach them.
_NOT_SIGNALS = (bool, int, str, torch.Size, torch.dtype, torch.device, type(None))


class TraceError(RuntimeError):
    """The network could not be traced; the message says where and why."""


class _ExampleTracer(fx.Tracer):
    """fx's symbolic tracer, but every node also carries the value it has on an example.

    Python control flow in a model's forward (timm's VGG head asks for the image size) then simply follows the example.
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example
        self.evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, TernaryLIF) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        self.evaluating = True
        try:
            with torch.no_grad():
                node.meta["value"] = self._evaluate(node)
        finally:
            self.evaluating = False
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, lambda n: n.meta["value"])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: n.meta["value"])
        target: Any = node.target
        match node.op:
            case "placeholder":
                return self.example if node.prev.op == "root" else (node.args[0] if node.args else None)
            case "get_attr":
                return operator.attrgetter(target)(self.root)
            case "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
        return None

    # While a value is computed, modules and parameters are the real ones, not proxies.
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    # Where Python asks for a truth value or wants to unpack, the example answers.
    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(obj.node.meta["value"])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, i) for i in range(len(obj.node.meta["value"]))])


def trace(model: nn.Module, example: Tensor) -> fx.Graph:
    """Trace a model in eval mode on an example; each node's ``meta["value"]`` holds what it gives there.

    Args:
        model: Any module that maps one tensor to one tensor; its weights and its train/eval mode stay as they are.
        example: Input, [B, C, H, W] or whatever the model takes.

    Returns:
        The graph. Layers of torch.nn and neurons are nodes; everything else is looked into.

    Raises:
        TraceError: The model does something that cannot be traced, or does not run on the example.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return _ExampleTracer(example).trace(model)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} could not be traced on an input of shape {tuple(example.shape)}: {error}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def static_encoders(graph: fx.Graph, is_neuron: Callable[[str], bool]) -> list[str]:
    """Names of the neurons that end the static prefix: all that lies before them depends on the image alone.

    For a still image everything before the first neurons gives the same at every time step and need be computed
    only once. Empty where a graph mixes: some other layer reads both static and spiking values.

    Args:
        graph: From :func:`trace`.
        is_neuron: Says of a module's name whether it is, or will be, a neuron.
    """
    static: set[fx.Node] = set()
    encoders: set[str] = set()
    spiking: set[str] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            static.add(node)
        elif node.op == "call_module" and is_neuron(node.target):
            (encoders if set(node.all_input_nodes) <= static else spiking).add(node.target)
        elif node.all_input_nodes:
            reads_static = [n in static for n in node.all_input_nodes if n.op != "get_attr"]
            if all(reads_static):
                static.add(node)
            elif any(reads_static):
                return []
    return [] if encoders & spiking else sorted(encoders)


class GaugeClasses:
    """Union-find over the tensors of a graph: tensors of one class share one gauge.

    Args:
        graph: From :func:`trace`, of a model whose activations are neurons.
        model: That model.

    Which operation ties what is the table in :mod:`lightning_tspike.fold`.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._parent: dict[fx.Node, fx.Node] = {}
        self._pinned: set[fx.Node] = set()
        self._owners = Counter(p for m in model.modules() for p in m.parameters(recurse=False))
        self.calls: dict[nn.Module, fx.Node] = {}  # first call of each module, in the order of execution
        for node in graph.nodes:
            self._add(node)
        self.neurons: dict[fx.Node, list[TernaryLIF]] = {}  # class -> neurons whose spikes belong to it
        for module, node in self.calls.items():
            if isinstance(module, TernaryLIF):
                self.neurons.setdefault(self.find(node), []).append(module)

    def find(self, node: fx.Node) -> fx.Node:
        """The class of a node's tensor, named by one of its members."""
        while self._parent.setdefault(node, node) is not node:
            self._parent[node] = node = self._parent[self._parent[node]]
        return node

    def is_pinned(self, node: fx.Node) -> bool:
        """Whether the gauge of this class must be 1."""
        root = self.find(node)
        return any(self.find(pinned) is root for pinned in self._pinned)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        return self._modules[node.target] if node.op == "call_module" else None

    def _absorbs(self, module: nn.Module) -> bool:
        """Whether a layer has numbers of its own, used by no other layer, to take up the gauges of both its sides."""
        if isinstance(module, TernaryLIF):
            return True
        own = dict(module.named_parameters(recurse=False))
        if any(self._owners[parameter] > 1 for parameter in own.values()):
            return False
        if isinstance(module, NORMS):
            has_statistics = module.running_mean is not None and module.running_var is not None
            return has_statistics and ("weight" in own) == bool(module.affine)
        return isinstance(module, WEIGHTED) and "weight" in own  # a parametrized weight is computed, not stored

    def _unite(self, nodes: Iterable[fx.Node]) -> None:
        first, *rest = nodes
        for node in rest:
            self._parent[self.find(node)] = self.find(first)

    def _add(self, node: fx.Node) -> None:
        if node.op == "output":
            self._pinned.update(node.all_input_nodes)
            return
        if isinstance(node.meta["value"], _NOT_SIGNALS):
            return
        inputs = [n for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor)]
        module = self.module_of(node)
        if module is not None and self._absorbs(module):
            # The layer's own numbers absorb the gauges of both sides. Called at several places it has only one set
            # of them, so all its inputs share a gauge, and all its outputs.
            first = self.calls.setdefault(module, node)
            self._unite([first, node])
            self._unite([first.all_input_nodes[0], node.all_input_nodes[0]])
        elif _is_join(node):
            self._unite([node, *inputs])
        elif _is_homogeneous(node, module) and inputs:
            self._unite([node, inputs[0]])
            self._pinned.update(inputs[1:])
        else:
            self._pinned.update([node, *inputs])


def _is_homogeneous(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return isinstance(module, _HOMOGENEOUS_MODULES)
    if node.op == "call_method":
        return node.target in _HOMOGENEOUS_METHODS
    return node.op == "call_function" and node.target in _HOMOGENEOUS_FUNCTIONS


def _is_join(node: fx.Node) -> bool:
    """Whether a node adds up or concatenates tensors, and nothing else: a plain number has no gauge."""
    is_join = (node.op == "call_function" and node.target in _JOINS) or (
        node.op == "call_method" and node.target in _JOIN_METHODS
    )
    if not is_join or not node.args or not node.kwargs.keys() <= {"dim", "axis"}:
        return False
    first = node.args[0]
    operands = first if isinstance(first, (list, tuple)) else node.args[:2]
    return all(isinstance(operand, fx.Node) and isinstance(operand.meta["value"], Tensor) for operand in operands)
