"""Pools of a traced graph that can run on bytes, whether they are modules or functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..graph.operations import arguments_of

__all__ = ["PoolOptions", "pool_options"]

_Pair = tuple[int, int]


@dataclass(frozen=True)
class PoolOptions:
    """What a pool does.

    Attributes:
        is_max: Whether it takes the largest of each window, else the mean.
        window: Kernel, stride and padding; None for the mean of whole maps.
        dilation: Of a max pool.
        ceil_mode: Whether windows may reach over the edge; of a mean: whether they would, at another size.
        divisor: What the sum of a window is divided by.
        size: Of a pool that changes nothing: the only size of maps of which that is true.
    """

    is_max: bool
    window: tuple[_Pair, _Pair, _Pair] | None
    dilation: _Pair = (1, 1)
    ceil_mode: bool = False
    divisor: int = 1
    size: _Pair | None = None


_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_MEAN = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_DEFAULTS = {
    "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False,
    "count_include_pad": True, "divisor_override": None,
}  # fmt: skip


def pool_options(node: fx.Node, modules: Mapping[str, nn.Module]) -> PoolOptions | None:
    """What a pool of maps [N, C, H, W] does; None where a node is none, or one that bytes are not enough for.

    Args:
        node: Of a traced graph.
        modules: Of the model, by name.
    """
    module: Any = modules[str(node.target)] if node.op == "call_module" else None
    given: dict[str, Any]
    if isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
        size = module.output_size if module is not None else arguments_of(node, "input", "output_size")["output_size"]
        if size in (1, (1, 1), [1, 1]):
            return PoolOptions(False, None)
        same = tuple(node.meta["value"].shape[2:])
        return PoolOptions(False, None, size=same) if node.all_input_nodes[0].meta["value"].shape[2:] == same else None
    if isinstance(module, nn.MaxPool2d) or node.target in (F.max_pool2d, torch.max_pool2d):
        is_max, names = True, _MAX
    elif isinstance(module, nn.AvgPool2d) or node.target is F.avg_pool2d:
        is_max, names = False, _MEAN
    else:
        return None
    given = _DEFAULTS | (
        {name: getattr(module, name) for name in names[1:]} if module is not None else arguments_of(node, *names)
    )
    if any(isinstance(value, fx.Node) for name, value in given.items() if name != "input"):
        return None
    kernel = _pair(given["kernel_size"])
    window = kernel, _pair(given["stride"]) if given["stride"] else kernel, _pair(given["padding"])
    if is_max:
        return None if given["return_indices"] else PoolOptions(
            True, window, _pair(given["dilation"]), bool(given["ceil_mode"])
        )  # fmt: skip
    maps = node.all_input_nodes[0].meta["value"].shape[2:]
    reaches_over = given["ceil_mode"] and any((n + 2 * p - k) % s for n, k, s, p in zip(maps, *window, strict=True))
    divides_alike = given["count_include_pad"] or not any(window[2]) or given["divisor_override"]
    if reaches_over or not divides_alike:
        return None
    divisor = given["divisor_override"] or kernel[0] * kernel[1]
    return PoolOptions(False, window, ceil_mode=bool(given["ceil_mode"]), divisor=divisor)


def _pair(value: Any) -> _Pair:
    return (value, value) if isinstance(value, int) else tuple(value)
