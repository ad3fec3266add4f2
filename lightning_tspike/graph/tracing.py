"""Looking into a network: tracing it on an example, finding its static prefix and whether that may be used."""

from __future__ import annotations

import copy
import operator
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..neurons import SpikingNeuron
from .activations import is_activation, is_timms
from .layer_rules import LAYER_RULES, layer_of
from .rules import RULES, Local, Pointwise, rule_of

__all__ = ["TraceError", "copy_of", "counts_on_batch", "same_values", "static_encoders", "trace"]

_Module = TypeVar("_Module", bound=nn.Module)
_NOT_THE_USERS = (os.path.dirname(torch.__file__), os.path.dirname(__file__))


class TraceError(RuntimeError):
    """The network could not be traced; the message says where and why."""


class _ExampleProxy(fx.Proxy):
    """A proxy that answers from the example what is no tensor: its shape, type and device."""

    def __getattr__(self, name: str) -> Any:
        known = getattr(self.node.meta["value"], name)
        if name not in {"ndim", "dtype", "device"}:
            self.node.meta["asked"] = True
        return super().__getattr__(name) if callable(known) or isinstance(known, Tensor) else known

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class _ExampleTracer(fx.Tracer):
    """fx's symbolic tracer, but every node also carries the value it has on an example.

    Python control flow in a model's forward (timm's VGG head asks for the image size) then simply follows the example.
    ``repeat`` says after which modules the batch becomes how many times as long, as behind the first neurons.
    """

    def __init__(self, example: Tensor, repeat: dict[str, int]) -> None:
        super().__init__()
        self.example = example
        self.repeat = repeat
        self.evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # of a type that has a rule; a subclass may do something else in its forward
        kinds = [*(rule.modules for rule in RULES), *(rule.modules for rule in LAYER_RULES)]
        has_rule = any(type(m) in modules for modules in kinds)
        if _is_neuron(m) or is_timms(m) or has_rule:
            return True
        # torch's layers are leaves, but not a TransformerEncoderLayer with an activation inside
        return super().is_leaf_module(m, module_qualified_name) and not any(map(_is_neuron, m.modules()))

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        node.meta["line"] = _users_line()
        node.meta["hooked"] = False
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
                module = self.root.get_submodule(target)
                inputs = copy.deepcopy((args, kwargs)) if _has_hooks(module) else None  # a layer may work in place
                value = module(*args, **kwargs)
                node.meta["hooked"] = inputs is not None and not same_values(
                    value, module.forward(*inputs[0], **inputs[1])
                )
                return value.repeat(self.repeat[target], *[1] * (value.ndim - 1)) if target in self.repeat else value
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
        return None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ExampleProxy(node, self)

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


def copy_of(module: _Module) -> _Module:
    """A deep copy, also of a module that keeps a computed weight, as ``torch.nn.utils.weight_norm`` makes it do."""
    computed = (v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf)
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in computed})


def trace(model: nn.Module, example: Tensor, repeat: dict[str, int] | None = None) -> fx.Graph:
    """Trace a model in eval mode on an example; each node's ``meta["value"]`` holds what it gives there.

    Args:
        model: Any module that maps one tensor to one tensor; its weights and its train/eval mode stay as they are.
        example: Input, [B, C, H, W] or whatever the model takes.
        repeat: Modules, by name, whose output is repeated that many times along the batch.

    Returns:
        The graph. Layers of torch.nn, activations and neurons are nodes; everything else is looked into. Each node's
        ``meta["line"]`` says where in the user's code it stands: ``file.py:12``; ``meta["hooked"]`` whether a hook
        changes what a layer gives; ``meta["asked"]``, where it is there, that the model has read more of it than its
        number of dimensions, type and device, such as its shape.

    Raises:
        TraceError: The model does something that cannot be traced, or does not run on the example.
    """
    # a copy: a model may keep what it computes (a bias for one image size, say), and here that is a proxy
    return _trace(copy_of(model).eval(), example, repeat or {})


def _trace(copied: nn.Module, example: Tensor, repeat: dict[str, int]) -> fx.Graph:
    try:
        return _ExampleTracer(example, repeat).trace(copied)
    except Exception as error:
        raise TraceError(
            f"{type(copied).__name__} could not be traced on an input of shape {tuple(example.shape)}: {error}"
        ) from error


def _is_neuron(module: nn.Module) -> bool:
    """Whether a module is a layer of neurons, or is to become one."""
    return isinstance(module, SpikingNeuron) or is_activation(module)


def same_values(a: object, b: object) -> bool:
    """Whether tensors, alone or nested, are equal; NaN equals NaN."""

    def same(x: object, y: object) -> bool:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return bool(x is y or x == y)
        return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())

    leaves, others = tree_leaves(a), tree_leaves(b)
    return len(leaves) == len(others) and all(map(same, leaves, others))


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _users_line() -> str:
    """Where the code stands that is being traced: the innermost line that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def static_encoders(graph: fx.Graph, is_neuron: Callable[[str], bool]) -> list[str]:
    """Names of the neurons that end the static prefix: all that lies before them depends on the image alone.

    For a still image everything before the first neurons gives the same at every time step and need be computed
    only once. Empty where a graph mixes: some other layer reads both static and spiking values.

    Args:
        graph: From :func:`trace`.
        is_neuron: Says of a module's name whether it is, or will be, a neuron.
    """
    static = _static_nodes(graph, is_neuron)
    if static is None:
        return []
    calls = [n for n in graph.nodes if n.op == "call_module" and is_neuron(n.target)]
    encoders = {n.target for n in calls if set(n.all_input_nodes) <= static}
    spiking = {n.target for n in calls if not set(n.all_input_nodes) <= static}
    return [] if encoders & spiking else sorted(encoders)


def counts_on_batch(model: nn.Module, graph: fx.Graph, encoders: Collection[str], example: Tensor) -> str | None:
    """Where a model, behind its first neurons, still counts on the number of images that came in.

    There, time steps make a batch T times as long as before. A forward that has read ``x.shape[0]`` of the images and
    reshapes spikes by it would mix samples; such a line shows when the model is traced with and without the prefix.

    Args:
        model: The model, its activations or neurons as modules.
        graph: Of the model, from :func:`trace`.
        encoders: Names of those that end the static prefix.
        example: An image [1, C, H, W].

    Returns:
        The line, or what else differs; None where it may be used.

    Raises:
        TraceError: The model does not run on several images.
    """
    prefix = _static_nodes(graph, set(encoders).__contains__) or set()
    modules = dict(model.named_modules(remove_duplicate=False))
    if all(_lets_nobody_count(node, modules) for node in prefix):
        return None
    steps = 3

    def seeded(device: torch.device, images: Tensor, repeat: dict[str, int]) -> fx.Graph:
        with torch.random.fork_rng(devices=[]):  # what a model draws must not differ
            torch.manual_seed(0)
            return _trace(copy_of(model).eval().to(device), images, repeat)

    def both(device: torch.device) -> tuple[fx.Graph, fx.Graph]:
        images = torch.zeros(2, *example.shape[1:], device=device, dtype=example.dtype)
        repeated = seeded(device, images.repeat(steps, *[1] * (images.ndim - 1)), {})
        try:
            return repeated, seeded(device, images, dict.fromkeys(encoders, steps))
        except TraceError as error:
            raise _PrefixError(str(error)) from error

    try:
        try:
            graphs = both(torch.device("meta"))  # shapes are enough, and cost next to nothing
        except (TraceError, _PrefixError, NotImplementedError):  # not every model runs on tensors without values
            graphs = both(example.device)
    except _PrefixError as error:
        return str(error)
    static = _static_nodes(graphs[1], set(encoders).__contains__) or set()
    if len(graphs[0].nodes) != len(graphs[1].nodes):
        return "its code takes another path for another number of images"
    pairs: dict[fx.Node, fx.Node] = {}
    for a, b in zip(graphs[0].nodes, graphs[1].nodes, strict=True):
        pairs[b] = a
        if b in static or (b.op == "get_attr" and static.issuperset(b.users)):
            continue
        arguments = fx.node.map_arg((b.args, b.kwargs), pairs.__getitem__)
        if (a.op, a.target, (a.args, a.kwargs), _shapes(a)) != (b.op, b.target, arguments, _shapes(b)):
            return str(b.meta["line"])
    return None


def _lets_nobody_count(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node keeps to itself how many images there are, and leaves them in the first dimension."""
    if "asked" in node.meta:
        return False
    if node.op == "placeholder" or layer_of(node, modules) is not None:
        return True
    return isinstance(rule_of(node, modules, lambda _: False), (Pointwise, Local))


class _PrefixError(Exception):
    """With the prefix the model does not even run."""


def _shapes(node: fx.Node) -> list[torch.Size]:
    leaves = tree_leaves(node.meta["value"])
    return [value.shape for value in leaves if isinstance(value, Tensor)]


def _static_nodes(graph: fx.Graph, is_neuron: Callable[[str], bool]) -> set[fx.Node] | None:
    """What depends on the images alone, not on spikes; None where something reads both."""
    static: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            static.add(node)
        elif node.all_input_nodes and not (node.op == "call_module" and is_neuron(node.target)):
            reads_static = [n in static for n in node.all_input_nodes if n.op != "get_attr"]
            if all(reads_static):
                static.add(node)
            elif any(reads_static):
                return None
    return static
