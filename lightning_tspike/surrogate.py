"""Surrogate gradients: what the backward pass takes for ds/du, the derivative of a spike by the membrane potential.

A ternary spike is a sum of two steps, s = H(u - theta) - H(-u - theta), a binary one is s = H(u - theta). A surrogate
puts a function h in the place of the step's derivative, so ds/du is h(u - theta) + h(-u - theta) and h(u - theta). With
z in units of the threshold and an area of 1 under h, the height of the step:

============== ========================================== ==============================================================
``rectangular`` h(z) = 1/2 where |z| < 1, else 0           straight through: ds/du = 1 / (2 theta) where |u| < 2 theta,
                                                           0 elsewhere; that of the ternary spike's published code
``triangular``  h(z) = max(0, 1 - |z|)                     Bellec et al. 2018, arXiv 1803.09574 (without its dampening
                                                           factor)
``arctan``      h(z) = 1 / (1 + (pi z)^2)                  Fang et al. 2021, arXiv 2007.05785
============== ========================================== ==============================================================

All of them depend on u / theta alone: ds/du = h(u / theta - 1) / theta, and hence ds/dtheta = -(u / theta) ds/du.

A spike of several levels, s in {-D..D}, is the sum of 2 D steps, at +-theta, +-3 theta, ..., +-(2 D - 1) theta, and
ds/du the sum of their 2 D functions h. So the rectangular one stays straight-through up to the end of the last level,
ds/du = 1 / (2 theta) where |u| < 2 D theta; the triangles stand side by side, each on a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._plain import is_plain

__all__ = ["SURROGATES", "Fire", "arctan", "fired", "firing", "rectangular", "triangular"]

Fire: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""u, theta -> s."""


def rectangular(u: Tensor, threshold: Tensor, is_ternary: bool, levels: int = 1) -> Tensor:
    """ds/du of the rectangular surrogate (equation above): shape of ``u``."""
    # 2 theta is compared with u, not 1 with u / theta: rounding would move the edges, and u = 0 belongs to the inside
    if is_ternary:
        return _indicator(torch.lt, u.abs(), 2 * levels * threshold) / (2 * threshold)
    return _indicator(torch.lt, (u - threshold).abs(), threshold) / (2 * threshold)


def triangular(u: Tensor, threshold: Tensor, is_ternary: bool, levels: int = 1) -> Tensor:
    """ds/du of the triangular surrogate (equation above): shape of ``u``."""
    v = (u.abs() if is_ternary else u) / threshold  # no two triangles overlap
    h = [(1 - (v - step).abs()).clamp_min(0) for step in _steps(levels)]
    return sum(h[1:], h[0]) / threshold


def arctan(u: Tensor, threshold: Tensor, is_ternary: bool, levels: int = 1) -> Tensor:
    """ds/du of the arctan surrogate (equation above): shape of ``u``."""
    v = u / threshold
    signs = (1, -1) if is_ternary else (1,)
    h = [1 / (1 + (math.pi * (v - sign * step)) ** 2) for step in _steps(levels) for sign in signs]
    return sum(h[1:], h[0]) / threshold


def _steps(levels: int) -> range:
    """Where a spike's steps are, in thresholds, on one side of 0: 1, 3, ..., 2 D - 1."""
    return range(1, 2 * levels, 2)


def _indicator(compare: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """1 where ``compare(a, b)``, else 0, in the dtype and shape of ``a``; ``b`` broadcasts to it.

    On the CPU torch writes such numbers several times faster than truth values and their conversion.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or a.is_cuda or not is_plain(a):
        return compare(a, b).to(a.dtype)
    return compare(a, b, out=torch.empty_like(a))


def fired(u: Tensor, threshold: Tensor, is_ternary: bool, levels: int = 1) -> Tensor:
    """What the surrogates stand in for: spikes s of the shape of ``u``, without a derivative.

    A spike of several levels counts the thresholds theta, 3 theta, 5 theta, ... that u has reached. This is what
    rounding u / (2 theta) gives, but for rounding of its own, so that it is the sum of its sub-steps to the last bit.
    """
    s = _indicator(torch.ge, u, threshold)
    s = s - _indicator(torch.le, u, -threshold) if is_ternary else s
    for step in _steps(levels)[1:]:
        s = s + _indicator(torch.ge, u, step * threshold) - _indicator(torch.le, u, -step * threshold)
    return s


SURROGATES: dict[str, Callable[..., Tensor]] = {
    "rectangular": rectangular,
    "triangular": triangular,
    "arctan": arctan,
}


def firing(surrogate: str, is_ternary: bool, levels: int = 1) -> Fire:
    """How membrane potentials u [B, ...] and a threshold theta make spikes s [B, ...], differentiable by a surrogate.

    Raises:
        ValueError: There is no surrogate of that name.
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"surrogate must be one of {sorted(SURROGATES)}, got {surrogate!r}")
    # torch.compile and torch.export take no function with a rule for forward-mode gradients
    function = _Fire if torch.compiler.is_compiling() else _FireWithTangents
    return lambda u, theta: function.apply(u, theta, surrogate, is_ternary, levels)


class _Fire(torch.autograd.Function):
    """u [B, ...], theta -> s, same shape as u; the surrogate stands in for the derivatives in the backward pass."""

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(u: Tensor, theta: Tensor, surrogate: str, is_ternary: bool, levels: int) -> Tensor:
        return fired(u, theta, is_ternary, levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, bool, int], output: Tensor) -> None:
        u, theta, ctx.surrogate, *ctx.kind = inputs
        ctx.save_for_backward(u, theta)
        ctx.save_for_forward(u, theta)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        u, theta = ctx.saved_tensors
        grad_u = grad_spikes * SURROGATES[ctx.surrogate](u, theta, *ctx.kind)
        grad_theta = -(grad_u * u / theta).sum_to_size(theta.shape) if ctx.needs_input_grad[1] else None
        return grad_u, grad_theta, None, None, None


class _FireWithTangents(_Fire):
    """The same, and forward-mode gradients."""

    @staticmethod
    def jvp(ctx: Any, tangent_u: Tensor | None, tangent_theta: Tensor | None, *_: None) -> Tensor:
        u, theta = ctx.saved_tensors
        tangent = torch.zeros_like(u) if tangent_u is None else tangent_u
        if tangent_theta is not None:
            tangent = tangent - u / theta * tangent_theta
        return tangent * SURROGATES[ctx.surrogate](u, theta, *ctx.kind)
