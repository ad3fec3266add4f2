"""How to read the nodes of a traced graph: what an operation is given, and what it runs over."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
ALL_NORMS = (*NORMS, *OTHER_NORMS, nn.InstanceNorm3d, nn.RMSNorm)


def input_of(node: fx.Node) -> Any:
    """What a layer or a function reads."""
    return node.args[0] if node.args else node.kwargs["input"]


def has_channels_second(node: fx.Node, name: str) -> bool:
    """Whether what a layer such as ``MaxPool2d`` or ``conv1d`` reads has a batch, so that channels are dimension 1."""
    space = re.search(r"([123])d", name)
    return space is None or "BatchNorm" in name or input_of(node).meta["value"].ndim == int(space[1]) + 2


def arguments_of(node: fx.Node, *names: str) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def only_looks(node: fx.Node) -> bool:
    """Whether a node whose result is no tensor asks for nothing that a gauge could change: shapes, types."""
    return node.target in {torch._assert, getattr, len, "size", "dim", "numel", "stride", "is_floating_point"}


def reduced_dims(node: fx.Node, ndim: int) -> tuple[tuple[int, ...], bool]:
    """Dimensions that a sum, mean or extremum runs over, and whether they stay with size 1."""
    arguments = arguments_of(node, "input", "dim", "keepdim")
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


def sums_whole_windows(module: nn.Module) -> bool:
    """Whether an average pool divides every window by the same number."""
    if not isinstance(module, (nn.AvgPool2d, nn.AvgPool3d)) or module.ceil_mode:
        return False
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    return module.count_include_pad or not any(padding) or module.divisor_override is not None


def window_size(module: Any) -> int:
    """How many numbers an average pool takes at once."""
    space = 2 if isinstance(module, nn.AvgPool2d) else 3
    size = module.kernel_size
    return math.prod(size) if isinstance(size, tuple) else int(size) ** space


def divisor_of(module: Any) -> int:
    """What an average pool divides by."""
    return window_size(module) if module.divisor_override is None else int(module.divisor_override)


def dense_macs(layer: Any, output: Tensor) -> int:
    """Multiply-accumulates of a call of a convolution or linear layer, were nothing skipped."""
    return output.numel() * layer.weight[0].numel()
