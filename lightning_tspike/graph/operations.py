"""The operations that :mod:`.gauges` has a rule for, and how to read their nodes in a traced graph."""

from __future__ import annotations

import enum
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..neurons import SpikingNeuron

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)


class Kind(enum.Enum):
    """What an operation does with gauges. All are positively homogeneous: f(g * x) = g * f(x) for g > 0."""

    POINTWISE = enum.auto()  # every element for itself
    MOVE = enum.auto()  # elements only change places
    LOCAL = enum.auto()  # combines neighbours within a channel, dimension 1
    REDUCE = enum.auto()  # combines all elements along some dimensions
    JOIN = enum.auto()  # adds two tensors
    PRODUCT = enum.auto()  # multiplies or divides by a constant or by a tensor of gauge 1


_MODULES = {
    Kind.POINTWISE: (
        nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU, nn.LeakyReLU, nn.PReLU,
    ),
    Kind.MOVE: (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    Kind.LOCAL: (
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
        nn.ZeroPad2d, nn.Upsample,
    ),
}  # fmt: skip
_FUNCTIONS: dict[Kind, set[Callable[..., Any]]] = {
    Kind.POINTWISE: {
        F.relu, torch.relu, F.leaky_relu, F.prelu, F.dropout, torch.neg, operator.neg, torch.abs, torch.clone,
    },
    Kind.MOVE: {
        operator.getitem, torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.unbind, torch.flatten,
        torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.unflatten, torch.roll,
        torch.flip, torch.movedim, torch.narrow, F.pixel_shuffle, F.pixel_unshuffle,
    },
    Kind.LOCAL: {
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate, torch.max_pool2d,
    },
    Kind.REDUCE: {torch.mean, torch.sum, torch.amax, torch.amin},
    Kind.JOIN: {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub},
    Kind.PRODUCT: {operator.mul, operator.imul, operator.truediv, operator.itruediv, torch.mul, torch.div},
}  # fmt: skip
_METHODS = {
    Kind.POINTWISE: {
        "relu", "relu_", "neg", "abs", "clone", "contiguous", "detach", "float", "double", "to", "type", "type_as",
    },
    Kind.MOVE: {
        "chunk", "split", "unbind", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze",
        "unflatten", "expand", "expand_as", "repeat", "roll", "flip", "movedim", "narrow", "select",
    },
    Kind.REDUCE: {"mean", "sum", "amax", "amin"},
    Kind.JOIN: {"add", "add_", "sub", "sub_"},
    Kind.PRODUCT: {"mul", "mul_", "div", "div_"},
}  # fmt: skip

_LAYER_FUNCTIONS: dict[Callable[..., Any], tuple[type[nn.Module], ...]] = {
    F.linear: WEIGHTED, F.conv1d: WEIGHTED, F.conv2d: WEIGHTED, F.conv3d: WEIGHTED, F.batch_norm: NORMS,
    torch.batch_norm: NORMS, F.layer_norm: OTHER_NORMS, F.group_norm: OTHER_NORMS,
}  # fmt: skip


def layer_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, fx.Node] | None:
    """The layer that a node calls and the node it reads, if it is one with numbers of its own.

    A functional call with exactly the numbers of one such module is a call of that module: timm's layers that do more
    than their base class (``Conv2dSame``, ``BatchNormAct2d``) look like this in a trace.
    """
    kinds = (SpikingNeuron, *WEIGHTED, *NORMS, *OTHER_NORMS)
    if node.op == "call_module":
        module = modules[str(node.target)]
        is_layer = isinstance(module, kinds) and _has_channels_second(node, type(module).__name__)
        return (module, _input(node)) if is_layer else None
    if node.op != "call_function" or node.target not in _LAYER_FUNCTIONS:
        return None
    if not _has_channels_second(node, getattr(node.target, "__name__", "")):
        return None
    attributes = [str(n.target).rpartition(".") for n in node.all_input_nodes if n.op == "get_attr"]
    owners = {owner for owner, _, _ in attributes}
    if len(owners) != 1:
        return None
    (owner,) = owners
    module = modules[owner]
    own = {name for name, _ in module.named_parameters(recurse=False)}
    if isinstance(module, NORMS):
        own |= {"running_mean", "running_var"}
    is_call = isinstance(module, _LAYER_FUNCTIONS[node.target]) and {name for _, _, name in attributes} == own
    return (module, _input(node)) if is_call else None


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module], is_constant: Callable[[fx.Node], bool]) -> Kind | None:
    """The kind of an operation; None for one without a rule."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        kind = next((kind for kind, types in _MODULES.items() if isinstance(module, types)), None)
        return None if kind is Kind.LOCAL and not _has_channels_second(node, type(module).__name__) else kind
    table: dict[Kind, Any] = _METHODS if node.op == "call_method" else _FUNCTIONS
    kind = next((kind for kind, targets in table.items() if node.target in targets), None)
    if kind is Kind.LOCAL and not _has_channels_second(node, getattr(node.target, "__name__", "")):
        return None
    if kind in (Kind.JOIN, Kind.PRODUCT):
        return _binary_kind(node, kind, is_constant)
    if node.target is F.pad and _pads_in_space(node):
        return Kind.LOCAL
    if node.target is F.conv2d and _is_fixed_filter(node, is_constant):
        return Kind.LOCAL
    return kind


def _has_channels_second(node: fx.Node, name: str) -> bool:
    """Whether what a layer such as ``MaxPool2d`` or ``conv1d`` reads has a batch, so that channels are dimension 1."""
    space = re.search(r"([123])d", name)
    return space is None or "BatchNorm" in name or _input(node).meta["value"].ndim == int(space[1]) + 2


def _binary_kind(node: fx.Node, kind: Kind, is_constant: Callable[[fx.Node], bool]) -> Kind | None:
    if len(node.args) != 2 or node.kwargs:
        return None
    signals = [a for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta["value"], Tensor)]
    numbers = [a.meta["value"] if isinstance(a, fx.Node) else a for a in node.args if a not in signals]
    if not all(isinstance(number, (int, float)) for number in numbers):
        return None
    if kind is Kind.JOIN:
        if numbers:  # x + 0, as Python's sum() starts
            return Kind.POINTWISE if numbers == [0] else None
        return Kind.JOIN
    is_division = "div" in getattr(node.target, "__name__", str(node.target))
    if numbers:
        return Kind.PRODUCT if node.args[0] in signals or not is_division else None
    if is_division:
        return Kind.PRODUCT if is_constant(signals[1]) else None
    return Kind.PRODUCT if any(map(is_constant, signals)) else None


def _arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _pads_in_space(node: fx.Node) -> bool:
    """Whether a pad, in space alone, adds copies of its input, zeros or (before a max pool) infinities."""
    arguments = _arguments(node, "input", "pad", "mode", "value")
    pad = fx.node.map_arg(arguments["pad"], lambda n: n.meta["value"])
    value = arguments.get("value")
    in_space = len(pad) <= 2 * (node.meta["value"].ndim - 2)
    is_fill_homogeneous = arguments.get("mode", "constant") != "constant" or value in (None, 0, math.inf, -math.inf)
    return in_space and is_fill_homogeneous


def _is_fixed_filter(node: fx.Node, is_constant: Callable[[fx.Node], bool]) -> bool:
    """Whether a convolution filters each channel by fixed numbers, as an anti-aliasing pool does."""
    arguments = _arguments(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
    groups = fx.node.map_arg(arguments.get("groups", 1), lambda n: n.meta["value"])
    x, weight = arguments["input"], arguments["weight"]
    if arguments.get("bias") is not None or not is_constant(weight):
        return False
    return groups == x.meta["value"].shape[1] == weight.meta["value"].shape[0]


def channel_axis(module: nn.Module) -> int:
    """Dimension along which a layer's numbers run: the last for linear layers, 1 for all others."""
    return -1 if isinstance(module, (nn.Linear, nn.LayerNorm)) else 1


def only_looks(node: fx.Node) -> bool:
    """Whether a node whose result is no tensor asks for nothing that a gauge could change: shapes, types."""
    return node.target in {torch._assert, getattr, len, "size", "dim", "numel", "stride", "is_floating_point"}


def reduced_dims(node: fx.Node, ndim: int) -> tuple[tuple[int, ...], bool]:
    """Dimensions that a sum, mean or extremum runs over, and whether they stay with size 1."""
    arguments = _arguments(node, "input", "dim", "keepdim")
    dims = fx.node.map_arg(arguments.get("dim", arguments.get("axis")), lambda n: n.meta["value"])
    if dims is None or dims == () or dims == []:
        dims = tuple(range(ndim))
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(dim % ndim for dim in dims), bool(arguments.get("keepdim", False))


def run(node: fx.Node, modules: Mapping[str, nn.Module], args: Any, kwargs: Any) -> Any:
    """What a node gives for other arguments."""
    target: Any = node.target
    if node.op == "call_module":
        return modules[target](*args, **kwargs)
    return getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)


def count_owners(model: nn.Module) -> Counter[Tensor]:
    """How many modules hold each parameter."""
    return Counter(p for m in model.modules() for p in m.parameters(recurse=False))


def exposed(graph: fx.Graph, model: nn.Module) -> set[nn.Module]:
    """Modules whose numbers something else reads, too, so that they must not change."""
    modules = dict(model.named_modules(remove_duplicate=False))
    read_elsewhere = (
        str(node.target).rpartition(".")[0]
        for node in graph.nodes
        if node.op == "get_attr" and any(layer_of(user, modules) is None for user in node.users)
    )
    return {modules[owner] for owner in read_elsewhere}


def absorbs(module: nn.Module, owners: Mapping[Tensor, int]) -> bool:
    """Whether a layer has numbers of its own, used by no other layer, to take up the gauges of both its sides."""
    if isinstance(module, SpikingNeuron):
        return True
    own = dict(module.named_parameters(recurse=False))
    if any(owners[parameter] > 1 for parameter in own.values()):
        return False
    if isinstance(module, NORMS):
        has_statistics = module.running_mean is not None and module.running_var is not None
        return has_statistics and ("weight" in own) == bool(module.affine)
    return isinstance(module, WEIGHTED) and "weight" in own  # a parametrized weight is computed, not stored


def sums_whole_windows(module: nn.Module) -> bool:
    """Whether an average pool divides every window by the same number."""
    if not isinstance(module, (nn.AvgPool2d, nn.AvgPool3d)) or module.ceil_mode:
        return False
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    return module.count_include_pad or not any(padding) or module.divisor_override is not None


def window_size(module: Any) -> int:
    """What an average pool divides by."""
    if module.divisor_override is not None:
        return int(module.divisor_override)
    space = 2 if isinstance(module, nn.AvgPool2d) else 3
    size = module.kernel_size
    return math.prod(size) if isinstance(size, tuple) else int(size) ** space
