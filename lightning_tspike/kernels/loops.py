"""The neuron in torch's own operations, with a backward pass that computes membrane potentials again.

For any device, without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..surrogate import SURROGATES, fired
from .layout import Neuron, per_channel

__all__ = ["backward", "forward"]

Number: TypeAlias = Tensor | float

_PIECE = 262144  # currents that go through all operations before the next ones: they fit in a cache


def forward(x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Number, neuron: Neuron) -> Tensor:
    """Spikes a * s, [T*B, ...]; arguments as in :func:`lightning_tspike.kernels.run`."""
    a, theta = per_channel(amplitude, x), per_channel(threshold, x)
    pieces = []
    for currents in _pieces(x, neuron):
        _, spikes = _integrate_and_fire(currents, theta, decay, neuron)
        pieces.append([(s * a).to(x.dtype) for s in spikes])
    return _join(pieces)


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
    grads_x: list[list[Tensor]] = []
    to_amplitude: list[Tensor] = []
    to_threshold: list[Tensor] = []
    to_decay: list[Tensor] = []
    grads = _pieces(grad, neuron._replace(static_input=False))
    for currents, grads_out in zip(_pieces(x, neuron), grads, strict=True):
        membranes, spikes = _integrate_and_fire(currents, theta, decay, neuron)
        steps: list[Tensor] = []
        g: Tensor | None = None  # dL/du of the step after
        for u, s, grad_out in zip(membranes[::-1], spikes[::-1], grads_out[::-1], strict=True):
            grad_out = grad_out.to(u.dtype)
            to_spike = a * grad_out
            if needs[0]:
                to_amplitude.append(_sum_to(grad_out * s, amplitude))
            rest: Tensor | None = None
            if g is not None:
                to_rest = decay * g  # dL/dv
                if needs[2]:
                    to_decay.append((g * _after_reset(u, s, theta, neuron)).sum())
                if neuron.reset == "hard":
                    rest, through = to_rest * (1 - s.abs()), u * s * to_rest
                else:
                    rest, through = to_rest, neuron.taken * theta * to_rest
                    if needs[1]:
                        to_threshold.append(_sum_to(-neuron.taken * s * to_rest, threshold))
                if not neuron.detach_reset:
                    to_spike = to_spike - through
            g = to_spike * surrogate(u, theta, neuron.is_ternary, neuron.levels)
            if needs[1]:
                to_threshold.append(_sum_to(-g * u / theta, threshold))
            g = g if rest is None else g + rest
            steps.append(g)
        grads_x.append([torch.stack(steps).sum(0)] if neuron.static_input else steps[::-1])
    totals = [torch.stack(parts).sum(0) if parts else None for parts in (to_amplitude, to_threshold, to_decay)]
    return _join(grads_x).to(x.dtype), totals[0], totals[1], totals[2]


def _pieces(x: Tensor, neuron: Neuron) -> Iterator[Sequence[Tensor]]:
    """The T time steps of each piece of the batch, each [b, ...]; one piece where nothing is gained by more."""
    batch = neuron.batch(x)
    size = max(1, _PIECE * len(x) // x.numel()) if x.device.type == "cpu" and x.numel() else batch
    if neuron.static_input:
        yield from ([piece] * neuron.timesteps for piece in x.split(size))
    else:
        yield from (piece.unbind(0) for piece in x.unflatten(0, (neuron.timesteps, batch)).split(size, dim=1))


def _join(pieces: list[list[Tensor]]) -> Tensor:
    """[T*B, ...] from the T time steps of each piece."""
    return torch.cat([piece for step in zip(*pieces, strict=True) for piece in step])


def _integrate_and_fire(
    currents: Sequence[Tensor], theta: Tensor, decay: Number, neuron: Neuron
) -> tuple[list[Tensor], list[Tensor]]:
    """Membrane potentials u_t and spikes s_t, T times [b, ...]."""
    membranes: list[Tensor] = []
    spikes: list[Tensor] = []
    h: Tensor | None = None  # what is left of the past
    for current in currents:
        current = current.to(theta.dtype)
        u = current if h is None else h + current
        s = fired(u, theta, neuron.is_ternary, neuron.levels)
        membranes.append(u)
        spikes.append(s)
        if len(spikes) < len(currents):
            h = decay * _after_reset(u, s, theta, neuron)
    return membranes, spikes


def _after_reset(u: Tensor, s: Tensor, theta: Tensor, neuron: Neuron) -> Tensor:
    return u * (1 - s.abs()) if neuron.reset == "hard" else u - neuron.taken * theta * s


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum of values [B, C, ...], by channel where ``like`` is [C]."""
    return values.sum() if like.ndim == 0 else values.sum([d for d in range(values.ndim) if d != 1])
