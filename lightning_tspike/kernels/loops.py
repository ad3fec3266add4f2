"""The neuron in torch's own operations, with a backward pass that computes membrane potentials again.

For any device, without a compiler; and what torch.compile sees and fuses when a whole network is compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..surrogate import SURROGATES
from .layout import Neuron, per_channel

__all__ = ["backward", "forward"]

Number = Tensor | float


def forward(x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Number, neuron: Neuron) -> Tensor:
    """Spikes a * s, [T*B, ...]; arguments as in :func:`lightning_tspike.kernels.run`."""
    a, theta = per_channel(amplitude, x), per_channel(threshold, x)
    spikes, h = [], None
    for t, current in enumerate(_steps(x, neuron)):
        u = _integrate(h, current, theta)
        s = _fired(u, theta, neuron)
        spikes.append((s * a).to(x.dtype))
        if t + 1 < neuron.timesteps:
            h = decay * _after_reset(u, s, theta, neuron)
    return torch.cat(spikes)


def backward(
    x: Tensor,
    amplitude: Tensor,
    threshold: Tensor,
    decay: Number,
    neuron: Neuron,
    grad: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients towards x, amplitude, threshold and decay; None for those of the last three that ``needs`` denies."""
    a, theta = per_channel(amplitude, x), per_channel(threshold, x)
    surrogate = SURROGATES[neuron.surrogate]
    membranes: list[Tensor] = []
    h = None
    for current in _steps(x, neuron):
        u = _integrate(h, current, theta)
        membranes.append(u)
        if len(membranes) < neuron.timesteps:
            h = decay * _after_reset(u, _fired(u, theta, neuron), theta, neuron)
    grads_x: list[Tensor] = []
    to_amplitude, to_threshold, to_decay = [], [], []
    g: Tensor | None = None  # dL/du of the step after
    for u, grad_out in zip(reversed(membranes), reversed(grad.to(theta.dtype).chunk(neuron.timesteps)), strict=True):
        s = _fired(u, theta, neuron)
        to_spike = a * grad_out
        if needs[0]:
            to_amplitude.append(_sum_to(grad_out * s, amplitude))
        rest: Tensor | None = None
        if g is not None:
            if needs[2]:
                to_decay.append((g * _after_reset(u, s, theta, neuron)).sum())
            to_rest = decay * g  # dL/dv
            if neuron.reset == "hard":
                rest = to_rest * (1 - s.abs())
                through = -u * s * to_rest
            else:
                rest, through = to_rest, -theta * to_rest
                if needs[1]:
                    to_threshold.append(_sum_to(-s * to_rest, threshold))
            if not neuron.detach_reset:
                to_spike = to_spike + through
        g = to_spike * surrogate(u, theta, neuron.is_ternary)
        if needs[1]:
            to_threshold.append(_sum_to(-g * u / theta, threshold))
        g = g if rest is None else g + rest
        grads_x.append(g)
    grad_x = torch.stack(grads_x).sum(0) if neuron.static_input else torch.cat(grads_x[::-1])
    totals = [torch.stack(parts).sum(0) if parts else None for parts in (to_amplitude, to_threshold, to_decay)]
    return grad_x.to(x.dtype), totals[0], totals[1], totals[2]


def _steps(x: Tensor, neuron: Neuron) -> list[Tensor] | tuple[Tensor, ...]:
    return [x] * neuron.timesteps if neuron.static_input else x.chunk(neuron.timesteps)


def _integrate(h: Tensor | None, current: Tensor, theta: Tensor) -> Tensor:
    current = current.to(theta.dtype)
    return current if h is None else h + current


def _fired(u: Tensor, theta: Tensor, neuron: Neuron) -> Tensor:
    fired = (u >= theta).to(u.dtype)
    return fired - (u <= -theta).to(u.dtype) if neuron.is_ternary else fired


def _after_reset(u: Tensor, s: Tensor, theta: Tensor, neuron: Neuron) -> Tensor:
    return u * (1 - s.abs()) if neuron.reset == "hard" else u - theta * s


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum of values [B, C, ...], by channel where ``like`` is [C]."""
    return values.sum() if like.ndim == 0 else values.sum([d for d in range(values.ndim) if d != 1])
