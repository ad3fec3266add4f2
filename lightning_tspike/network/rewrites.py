"""What folding may change in a model's structure, apart from its numbers; a folder repeats it when it is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..graph.operations import NORMS, WEIGHTED

__all__ = ["Rewrites"]


@dataclass(frozen=True)
class Rewrites:
    """Structural changes to a model, by the names of its modules.

    Attributes:
        sum_pools: Average pools that sum instead.
        merged_norms: Batch norms that are gone: name of the norm -> name of the convolution or linear layer that has
            taken it up and has a bias for it.
    """

    sum_pools: tuple[str, ...] = ()
    merged_norms: Mapping[str, str] = field(default_factory=dict)

    def followed_by(self, later: Rewrites) -> Rewrites:
        """These changes and then those: what a network that is folded again has gone through."""
        return Rewrites(
            (*self.sum_pools, *(name for name in later.sum_pools if name not in self.sum_pools)),
            {**self.merged_norms, **later.merged_norms},
        )

    def apply(self, model: nn.Module) -> None:
        """Change the model's structure, in place. A new bias is 0.

        Raises:
            ValueError: A name does not stand for a module of the right kind.
        """
        for name in self.sum_pools:
            pool: Any = _module(model, name, (nn.AvgPool2d, nn.AvgPool3d), "an average pool")
            pool.divisor_override = 1
        for name, layer_name in self.merged_norms.items():
            norm = _module(model, name, NORMS, "a batch norm")
            layer: Any = _module(model, layer_name, WEIGHTED, "a convolution or linear layer")
            if layer.bias is None:
                weight = layer.weight
                layer.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device, dtype=weight.dtype))
            parent, _, child = name.rpartition(".")
            # timm's norms with an activation of their own keep what comes after the norm, under the same names
            rest = OrderedDict(norm.named_children())
            setattr(model.get_submodule(parent), child, nn.Sequential(rest) if rest else nn.Identity())


def _module(model: nn.Module, name: str, kinds: tuple[type[nn.Module], ...], what: str) -> nn.Module:
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, kinds):
        raise ValueError(f"{name!r} is not the name of {what} in {type(model).__name__}")
    return module
