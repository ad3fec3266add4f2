"""Fused neurons: all time steps in one pass over memory, forward and backward.

============ ======================== ==================================================================================
name         runs on                  how
============ ======================== ==================================================================================
``native``   CPU, with a C++ compiler native.cpp, compiled at first use
``triton``   CUDA                     triton_kernels.py
``loops``    anything                 torch's operations
============ ======================== ==================================================================================

All of them do the same: forward reads the current once and writes the spikes once; backward reads the current and the
incoming gradient once, computes membrane potentials and spikes again, and writes the gradient once. Beside the current
nothing is kept for backward. The spikes in single and double precision are those of
:func:`lightning_tspike.functional.integrate_and_fire`, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._plain import is_plain
from . import native, operator
from .dispatch import NAMES, can_compile, choose, implementation, use
from .layout import Neuron, is_dense, per_channel

__all__ = ["NAMES", "Neuron", "can_compile", "choose", "is_dense", "per_channel", "run", "step", "use"]


def run(name: str, x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron) -> Tensor:
    """Run a layer of neurons.

    Args:
        name: How: what :func:`choose` says.
        x: Current, [T*B, ...] with time outermost, or [B, ...] with ``neuron.static_input``.
        amplitude: Spike amplitude a, shape [] or [C], in the precision in which the membrane potential is computed.
        threshold: Firing threshold theta, likewise.
        decay: Decay tau, a number or shape [].
        neuron: Everything else.

    Returns:
        Spikes a * s, [T*B, ...] in the dtype of ``x``. They can be differentiated once.
    """
    if name == "operator":
        decay = decay if isinstance(decay, Tensor) else threshold.new_full((), decay)
        return operator.neuron(x, amplitude, threshold, decay, neuron.timesteps, neuron.kind)
    return _Fused.apply(x, amplitude, threshold, decay, neuron, name)


def step(
    x: Tensor, memory: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron
) -> tuple[Tensor, Tensor] | None:
    """Run a layer of neurons for one time step, without gradients, where there is a kernel for that.

    Args:
        x: Current, [B, ...].
        memory: What is left of the past, [B, ...].
        amplitude: As in :func:`run`.
        threshold: As in :func:`run`.
        decay: As in :func:`run`.
        neuron: Everything else; its T is 1.

    Returns:
        Spikes a * s, in the dtype of ``x``, and the memory for the next step; None where there is no kernel.
    """
    if choose(x, neuron) != "native" or not is_plain(memory):
        return None
    return native.step(x, memory, amplitude, threshold, decay, neuron)


class _Fused(torch.autograd.Function):
    """Arguments of :func:`run` -> spikes; keeps the current and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron, name: str
    ) -> Tensor:
        learns_decay = isinstance(decay, Tensor)
        ctx.save_for_backward(x, amplitude, threshold, *((decay,) if learns_decay else ()))
        ctx.decay, ctx.neuron, ctx.name = None if learns_decay else decay, neuron, name
        return implementation(name).forward(x, amplitude, threshold, decay, neuron)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, amplitude, threshold, *rest = ctx.saved_tensors
        decay = rest[0] if rest else ctx.decay
        needs = ctx.needs_input_grad[1:4]
        grads = implementation(ctx.name).backward(x, amplitude, threshold, decay, ctx.neuron, grad, needs)
        return *grads, None, None
