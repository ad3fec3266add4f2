"""Which modules and functions are activations, and where a model calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = [
    "ACTIVATIONS",
    "FUNCTIONS",
    "activation_calls",
    "activation_module",
    "is_activation",
    "is_timms",
    "owner_of",
    "reads",
    "replace_module",
    "take_hooks",
]

_Module = TypeVar("_Module", bound=nn.Module)
_HOOKS = {name for name in vars(nn.Module()) if "forward" in name and "hooks" in name}

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
"""Modules of torch that :func:`lightning_tspike.ternarize` replaces by neurons, as it does timm's own
(``GELU``, ``GELUTanh``, ``QuickGELU``, ``Swish``, ``HardSwish``, ``Mish``, ...). Gates (Sigmoid, Softmax, Hardsigmoid)
stay."""

_TIMMS = {
    "Swish", "Mish", "Tanh", "HardSwish", "HardMish", "GELU", "GELUTanh", "QuickGELU", "SwishMe", "MishMe",
    "HardSwishMe", "HardMishMe",
}  # fmt: skip

_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {  # those after the input, named alike in function and module
    nn.ReLU: ("inplace",), nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.ELU: ("alpha", "inplace"), nn.SELU: ("inplace",), nn.CELU: ("alpha", "inplace"), nn.GELU: ("approximate",),
    nn.SiLU: ("inplace",), nn.Mish: ("inplace",), nn.Hardswish: ("inplace",),
    nn.Hardtanh: ("min_val", "max_val", "inplace"),
}  # fmt: skip
FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU,
    F.leaky_relu: nn.LeakyReLU, F.leaky_relu_: nn.LeakyReLU, F.elu: nn.ELU, F.elu_: nn.ELU, F.selu: nn.SELU,
    torch.selu: nn.SELU, F.celu: nn.CELU, torch.celu: nn.CELU, F.gelu: nn.GELU, F.silu: nn.SiLU, F.mish: nn.Mish,
    F.hardswish: nn.Hardswish, F.hardtanh: nn.Hardtanh, F.hardtanh_: nn.Hardtanh,
}  # fmt: skip
# May be part of a formula (relu6(x + 3) / 6 is a gate, x * tanh(softplus(x)) is Mish) or have weights: left to the user
_LEFT_ALONE = {
    F.relu6, F.tanh, torch.tanh, "tanh", "tanh_", F.softplus, F.softsign, F.prelu, torch.prelu, F.rrelu,
}  # fmt: skip


def is_activation(module: nn.Module) -> bool:
    """Whether this is an activation, of torch or timm, that becomes a layer of neurons."""
    return isinstance(module, ACTIVATIONS) or (is_timms(module) and type(module).__name__ in _TIMMS)


def is_timms(module: nn.Module) -> bool:
    """Whether this is an activation or a gate of timm's own: part of a formula, its relu6() is no activation."""
    return type(module).__module__.startswith("timm.layers.activations")


def activation_calls(graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
    """Calls of activation functions in a graph from :func:`lightning_tspike.graph.trace`, and where they stand.

    What is computed from parameters alone (the softplus of a learned scale) is no activation.
    """
    signals: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not signals.isdisjoint(node.all_input_nodes):
            signals.add(node)
            if _is_call(node) and (node.target in FUNCTIONS or node.target in _LEFT_ALONE):
                yield node, f"{_function_name(node)} in {owner_of(node) or 'the model'}, {node.meta.get('line')}"


def activation_module(node: fx.Node) -> nn.Module | None:
    """The module that does what this call of an activation function does; None where there is none."""
    kind = FUNCTIONS.get(node.target) if _is_call(node) else None
    if kind is None:
        return None
    options = dict(zip(_ARGUMENTS[kind], node.args[1:], strict=False))
    options |= {name: value for name, value in node.kwargs.items() if name != "input"}
    works_in_place = bool(options.pop("inplace", False)) or _function_name(node).endswith("_()")
    if any(isinstance(value, fx.Node) for value in options.values()) or not node.users:
        return None
    if works_in_place and len(reads(node).users) > 1:  # what was changed is read again
        return None
    return kind(**options)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module, undo: ExitStack) -> None:
    """Put a module in the place of another, under all the names that it has in a model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
                undo.callback(setattr, parent, name, old)
                if isinstance(parent, nn.TransformerEncoderLayer):  # else its fast path in eval mode ignores its child
                    undo.callback(setattr, parent, "activation_relu_or_gelu", parent.activation_relu_or_gelu)
                    parent.activation_relu_or_gelu = 0


def take_hooks(old: nn.Module, new: _Module) -> _Module:
    """Give a module the hooks of the one whose place it takes."""
    for name, hooks in vars(old).items():
        if name in _HOOKS:
            setattr(new, name, hooks)
    return new


def owner_of(node: fx.Node) -> str:
    """Name of the module whose code makes this call; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(list(stack.values())))[0] if stack else ""


def reads(node: fx.Node) -> Any:
    """The first argument of a call."""
    return node.args[0] if node.args else node.kwargs["input"]


def _is_call(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method")


def _function_name(node: fx.Node) -> str:
    return f"{node.target if isinstance(node.target, str) else getattr(node.target, '__name__', node.target)}()"
