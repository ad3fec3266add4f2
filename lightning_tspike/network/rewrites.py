"""What folding may change in a model's structure, apart from its numbers; a folder repeats it when it is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from ..graph.activations import replace_module
from ..graph.operations import NORMS, WEIGHTED

__all__ = ["STANDARDIZED", "Rewrites"]

STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
"""timm's convolutions that standardise their weights at each call: a mean of 0 and a variance of 1 for each output
channel (Qiao et al. 2019, arXiv 1903.10520), times a learned gain in norm-free networks (Brock et al. 2021,
arXiv 2101.08692)."""


@dataclass(frozen=True)
class Rewrites:
    """Structural changes to a model, by the names of its modules.

    Attributes:
        standardized: Convolutions that standardised their weights at each call, and hold the result now.
        sum_pools: Average pools that sum instead.
        merged_norms: Batch norms that are gone: name of the norm -> name of the convolution or linear layer that has
            taken it up and has a bias for it.
    """

    standardized: tuple[str, ...] = ()
    sum_pools: tuple[str, ...] = ()
    merged_norms: Mapping[str, str] = field(default_factory=dict)

    def followed_by(self, later: Rewrites) -> Rewrites:
        """These changes and then those: what a network that is folded again has gone through."""
        return Rewrites(
            (*self.standardized, *later.standardized),
            (*self.sum_pools, *(name for name in later.sum_pools if name not in self.sum_pools)),
            {**self.merged_norms, **later.merged_norms},
        )

    def apply(self, model: nn.Module) -> None:
        """Change the model's structure, in place. A new bias is 0.

        Raises:
            ValueError: A name does not stand for a module of the right kind.
        """
        for name in self.standardized:
            standardizes = _module(model, name, STANDARDIZED, "a convolution that standardises its weights")
            replace_module(model, standardizes, _plain(standardizes), ExitStack())
        for name in self.sum_pools:
            pool: Any = _module(model, name, (nn.AvgPool2d, nn.AvgPool3d), "an average pool")
            pool.divisor_override = 1
        for name, layer_name in self.merged_norms.items():
            norm = _module(model, name, NORMS, "a batch norm")
            layer: Any = _module(model, layer_name, WEIGHTED, "a convolution or linear layer")
            if layer.bias is None:
                weight = layer.weight
                layer.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device, dtype=weight.dtype))
            # timm's norms with an activation of their own keep what comes after the norm, under the same names
            rest = OrderedDict(norm.named_children())
            replace_module(model, norm, nn.Sequential(rest) if rest else nn.Identity(), ExitStack())


def _module(model: nn.Module, name: str, kinds: tuple[type[nn.Module], ...], what: str) -> nn.Module:
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, kinds):
        raise ValueError(f"{name!r} is not the name of {what} in {type(model).__name__}")
    return module


def _plain(conv: Any) -> nn.Conv2d:
    """The convolution with the weights that it would compute."""
    pads_itself = isinstance(conv, (StdConv2dSame, ScaledStdConv2dSame)) and conv.same_pad
    weight = _standardized(conv)
    plain = (Conv2dSame if pads_itself else nn.Conv2d)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    plain.weight = nn.Parameter(weight)
    if conv.bias is not None:
        plain.bias = conv.bias
    return plain.train(conv.training)


def _standardized(conv: Any) -> Tensor:
    """W' = gain * scale * (W - mean) / sqrt(var + eps) for each output channel; scale is gamma / sqrt(fan-in)."""
    weight = conv.weight.detach()
    gain = (conv.gain.detach() * conv.scale).flatten() if hasattr(conv, "gain") else None
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, gain, training=True, eps=conv.eps).reshape_as(weight)
