"""Turn calls of activation functions in a model's code into modules, so that they can be swapped for neurons."""

from __future__ import annotations

import random
from collections.abc import Hashable
from contextlib import ExitStack
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.activations import FUNCTIONS, activation_calls, activation_module, owner_of, reads, replace_module
from ..graph.tracing import TraceError, copy_of, same_values, trace

__all__ = ["Rewritten", "functions_to_modules"]


def functions_to_modules(
    model: nn.Module, graph: fx.Graph, example: Tensor, undo: ExitStack
) -> tuple[nn.Module, fx.Graph]:
    """Turn calls of activation functions into activation modules, where that is safe; the model computes the same.

    An attribute that holds such a function gets the module instead. A module whose ``forward`` calls such functions is
    replaced by a :class:`Rewritten` one with the same children and parameters under the same names.

    Args:
        model: Any module; it is changed in place.
        graph: From :func:`lightning_tspike.graph.trace`.
        example: What it was traced on.
        undo: Gets what takes all changes back.

    Returns:
        The model, another object where its own ``forward`` is rewritten, and its graph.
    """
    attributes = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if callable(value) and isinstance(value, Hashable) and value in FUNCTIONS
    ]
    owners = {owner_of(node) for node, _ in activation_calls(graph) if node.target in FUNCTIONS}
    if not attributes and not owners:
        return model, graph
    with ExitStack() as own_undo, torch.no_grad():
        expected = copy_of(model).eval()(example)
        for module, name, function in attributes:
            _set_attribute(module, name, FUNCTIONS[function]().train(module.training))
            own_undo.callback(_set_attribute, module, name, function)
        new_model = model
        for owner in sorted(owners, reverse=True):  # the innermost first: a module further out takes its new children
            old = model.get_submodule(owner)
            new = _rewritten(old)
            if new is not None and old is model:
                new_model = new
            elif new is not None:
                replace_module(model, old, new, own_undo)
        try:
            new_graph = trace(new_model, example)
        except TraceError:
            return model, graph
        # a forward that asks isinstance(x, Tensor) of what is none while it is traced gives something else
        if not same_values(expected, copy_of(new_model).eval()(example)):
            return model, graph
        undo.callback(own_undo.pop_all().close)
    return new_model, new_graph


class Rewritten(nn.Module):
    """What another module does, by code that was generated from its graph.

    It has that module's children, parameters, buffers and attributes under the same names. Unlike a ``GraphModule`` it
    keeps them when it is copied, used in ``forward`` or not.

    Args:
        module: The module.
        graph: Of its ``forward``; its children are nodes.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        for name, value in vars(module).items():
            self.__dict__[name] = value.copy() if isinstance(value, (dict, set)) else value
        code = graph.python_code("self")
        self._name = type(module).__name__
        self._source = code.src
        self._functions = {k: v for k, v in code.globals.items() if k not in _SCOPE}  # pickled by name
        self._compile()

    def _compile(self) -> None:
        scope = {**_SCOPE, **self._functions}
        exec(compile(self._source, f"<forward of {self._name}>", "exec"), scope)
        # a class of its own, as each GraphModule has, for fx and others look at the signature of its forward
        self.__class__ = type(self._name, (Rewritten,), {"forward": scope["forward"]})

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (), vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()


def _blank() -> Rewritten:
    return Rewritten.__new__(Rewritten)


_SCOPE = fx.Graph().python_code("self").globals


class _OwnCode(fx.Tracer):
    """Looks into a module's own forward alone."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _rewritten(module: nn.Module) -> Rewritten | None:
    """A module with its activation functions as children; None where its code cannot be told from one trace."""
    if not _has_forward_alone(module):
        return None
    copied = copy_of(module)
    before = {name: value for name, value in vars(copied).items() if name != "training"}
    random_states = random.getstate(), torch.get_rng_state()
    graphs = []
    for training in (True, False):
        try:
            graphs.append(_OwnCode().trace(copied.train(training)))
        except Exception:  # control flow by values or shapes, or whatever else a proxy cannot do
            return None
    draws = random.getstate() != random_states[0] or not torch.equal(torch.get_rng_state(), random_states[1])
    after = {name: value for name, value in vars(copied).items() if name != "training"}
    keeps = before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    train_code, eval_code = (graph.python_code("self").src for graph in graphs)
    if draws or not keeps or train_code != eval_code:
        return None
    children: dict[str, nn.Module] = {}
    for node, _ in list(activation_calls(graphs[0])):
        if (child := activation_module(node)) is not None:
            name = _new_name(type(child).__name__.lower(), {*dir(module), *children})
            children[name] = child
            with graphs[0].inserting_before(node):
                node.replace_all_uses_with(graphs[0].call_module(name, (reads(node),)))
            graphs[0].erase_node(node)
    if not children:
        return None
    new = Rewritten(module, graphs[0])
    for name, child in children.items():
        new.add_module(name, child.train(module.training))
    return new


def _has_forward_alone(module: nn.Module) -> bool:
    """Whether a module is nothing but its forward, of tensors: nobody can miss another method, a hook or an option."""
    kinds = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    methods = {name for kind in kinds for name, value in vars(kind).items() if callable(value) or _is_property(value)}
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    parameters = signature(module.forward).parameters.values()
    return (
        all(name.startswith("_") for name in methods - {"forward"})
        and not any(hooks)
        and all(p.kind is Parameter.POSITIONAL_OR_KEYWORD and p.default is Parameter.empty for p in parameters)
        and not any(name in vars(kind) for kind in kinds for name in ("__call__", "__getattr__", "__setattr__"))
    )


def _is_property(value: Any) -> bool:
    return isinstance(value, (property, staticmethod, classmethod))


def _new_name(name: str, taken: set[str]) -> str:
    count = 1
    while (numbered := name if count == 1 else f"{name}{count}") in taken:
        count += 1
    return numbered


def _set_attribute(module: nn.Module, name: str, value: Any) -> None:
    delattr(module, name)
    setattr(module, name, value)
