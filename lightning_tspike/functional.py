"""The ternary leaky integrate-and-fire neuron as pure functions of tensors.

The neuron is that of Guo et al., "Ternary Spike: Learning Ternary Spikes for Spiking Neural Networks", AAAI 2024,
arXiv 2312.06372. For an input current x_t (t = 1..T), membrane potential u, decay tau, threshold theta and amplitude
a > 0::

    u_t = tau * u_{t-1} * (1 - |s_{t-1}|) + x_t,   u_0 = 0       leak, hard reset, integrate
    s_t = sign(u_t) if |u_t| >= theta else 0                     fire: s_t in {-1, 0, +1}
    o_t = a * s_t                                                what the next layer sees

    ds/du := 1/w if |u| < w else 0,   w = 2 * theta              surrogate gradient (rectangular)

The amplitude takes no part in the reset. Gradients flow through the reset too, with d|s|/ds = sign(s), unless it is
detached. Default threshold, decay and surrogate width are those of the authors' published code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["membrane_potential", "ternary_lif"]

DECAY = 0.25
THRESHOLD = 0.5


def ternary_lif(
    x: Tensor,
    timesteps: int,
    amplitude: Tensor | float = 1.0,
    *,
    decay: float = DECAY,
    threshold: Tensor | float = THRESHOLD,
    detach_reset: bool = False,
) -> Tensor:
    """Run a layer of ternary LIF neurons over all time steps (equations at the top of this file).

    Args:
        x: Input current, shape [T*B, ...] with time outermost; channels, where there are any, are dimension 1.
        timesteps: Number of time steps T.
        amplitude: Spike amplitude a > 0: one number, or a tensor of shape [] or [C] (then it may require a gradient).
        decay: Factor tau in [0, 1] by which the membrane potential shrinks in one time step.
        threshold: Firing threshold theta > 0, in units of the membrane potential: one number, or shape [] or [C].
        detach_reset: Cut the gradient that flows through the reset.

    Returns:
        Spikes a * s, with the shape and dtype of ``x``.

    Raises:
        ValueError: ``timesteps`` is not a positive whole number or does not divide the first dimension of ``x``.

    Half-precision inputs are integrated in float32. A NaN membrane potential never reaches a threshold, so it gives
    no spike; an infinite one fires.

    Example:
        >>> x = torch.tensor([[0.6], [0.2], [-0.7]])  # one neuron, three time steps
        >>> ternary_lif(x, timesteps=3, amplitude=2.0).flatten().tolist()
        [2.0, 0.0, -2.0]
    """
    _check_timesteps(x, timesteps)
    spikes = _TernarySpikes.apply(x, timesteps, decay, _per_channel(threshold, x), detach_reset)
    return (spikes * _per_channel(amplitude, x)).to(x.dtype)


def membrane_potential(
    x: Tensor, timesteps: int, *, decay: float = DECAY, threshold: Tensor | float = THRESHOLD
) -> Tensor:
    """Membrane potential u_t of every neuron just before it fires, for looking at; it carries no gradient.

    Args:
        x: Input current, shape [T*B, ...].
        timesteps: Number of time steps T.
        decay: Factor tau, as in :func:`ternary_lif`.
        threshold: Firing threshold theta, as in :func:`ternary_lif`.

    Returns:
        u, shape [T*B, ...]; float32 for half-precision inputs, the dtype of ``x`` otherwise.

    Raises:
        ValueError: As for :func:`ternary_lif`.
    """
    _check_timesteps(x, timesteps)
    with torch.no_grad():
        return _integrate_and_fire(x, timesteps, decay, _per_channel(threshold, x))[0].flatten(0, 1)


def _integrate_and_fire(x: Tensor, timesteps: int, decay: float, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """Membrane potentials before firing and spikes, both [T, B, ...], in at least single precision."""
    x = _split_time(x, timesteps).to(torch.promote_types(x.dtype, torch.float32))  # [T, B, ...]
    membranes, spikes = torch.empty_like(x), torch.empty_like(x)
    for t in range(timesteps):
        u = x[t] if t == 0 else torch.addcmul(x[t], membranes[t - 1], 1 - spikes[t - 1].abs(), value=decay)
        membranes[t] = u
        spikes[t] = (u >= threshold).to(u.dtype) - (u <= -threshold).to(u.dtype)
    return membranes, spikes


class _TernarySpikes(torch.autograd.Function):
    """x [T*B, ...] -> s in {-1, 0, +1}, same shape; the surrogate stands in for ds/du in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, timesteps: int, decay: float, threshold: Tensor | float, detach_reset: bool
    ) -> Tensor:
        membranes, spikes = _integrate_and_fire(x, timesteps, decay, threshold)
        ctx.save_for_backward(membranes, torch.as_tensor(threshold, dtype=membranes.dtype, device=x.device))
        ctx.decay, ctx.detach_reset, ctx.dtype = decay, detach_reset, x.dtype
        return spikes.flatten(0, 1)  # not yet in half precision: the gradient of the amplitude is summed over them

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        membranes, threshold = ctx.saved_tensors  # [T, B, ...], broadcastable to [B, ...]
        grad_s = _split_time(grad_spikes, membranes.shape[0]).to(membranes.dtype)  # dL/ds_t, not through the reset
        grad_x = torch.empty_like(membranes)
        width = 2 * threshold
        grad_next = None  # dL/du_{t+1}
        for t in reversed(range(membranes.shape[0])):
            u = membranes[t]
            surrogate = (u.abs() < width).to(u.dtype) / width
            grad_u = grad_s[t] * surrogate
            if grad_next is not None:
                # u_{t+1} = tau * u_t * (1 - |s_t|) + x_{t+1}
                spike = (u >= threshold).to(u.dtype) - (u <= -threshold).to(u.dtype)
                through = 1 - spike.abs()
                if not ctx.detach_reset:
                    through = through - u * spike * surrogate
                grad_u = grad_u + ctx.decay * grad_next * through
            grad_x[t] = grad_next = grad_u  # dL/dx_t = dL/du_t
        return grad_x.flatten(0, 1).to(ctx.dtype), None, None, None, None


def _split_time(x: Tensor, timesteps: int) -> Tensor:
    """[T*B, ...] -> [T, B, ...]; unlike unflatten with -1 it takes an empty batch too."""
    return x.unflatten(0, (timesteps, x.shape[0] // timesteps))


def _per_channel(value: Tensor | float, x: Tensor) -> Tensor | float:
    """Shape a [C] tensor so that it broadcasts along dimension 1 of x [T*B, C, ...]."""
    return value.view(-1, *[1] * (x.ndim - 2)) if isinstance(value, Tensor) and value.ndim == 1 else value


def _check_timesteps(x: Tensor, timesteps: int) -> None:
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ValueError(f"timesteps must be a whole number of at least 1, got {timesteps!r}")
    if x.ndim == 0 or x.shape[0] % timesteps:
        raise ValueError(
            f"x must have shape [T*B, ...] with T = {timesteps} outermost, got {tuple(x.shape)}: "
            f"its first dimension is no multiple of {timesteps}"
        )
