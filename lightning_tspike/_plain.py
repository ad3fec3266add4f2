"""Tensors that are numbers in memory, and tensors that stand for something else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["is_plain"]


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is numbers in memory that its address leads to, and whose gradients go backwards alone.

    No subclass of Tensor is, nor a meta tensor, nor anything that is traced, that ``torch.func`` transforms or that
    carries a forward-mode gradient.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad.unpack_dual(x).tangent is None
    )
