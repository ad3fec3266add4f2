"""The neuron as an operator that torch.compile puts into its graphs as it is, in one piece.

It runs the kernel that is there. Left to torch.compile, the loops over time are fused with the batch norms around them,
which on a CPU took longer than compiled norms and called neurons one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import choose, implementation
from .layout import Neuron, dense

__all__ = ["neuron"]


@torch.library.custom_op("lightning_tspike::neuron", mutates_args=())
def neuron(x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor, timesteps: int, kind: str) -> Tensor:
    """Spikes a * s, [T*B, ...]; arguments as in :func:`lightning_tspike.kernels.run`, and :attr:`Neuron.kind`."""
    options = Neuron.of_kind(timesteps, kind)
    return implementation(_way(x, options)).forward(x, amplitude, threshold, decay, options)


@neuron.register_fake
def _(x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor, timesteps: int, kind: str) -> Tensor:
    options = Neuron.of_kind(timesteps, kind)
    return options.empty_output(dense(x))


@torch.library.custom_op("lightning_tspike::neuron_backward", mutates_args=())
def _backward(
    x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor, grad: Tensor, needs: list[bool], timesteps: int,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients towards x, amplitude, threshold and decay; empty tensors for those that ``needs`` denies."""
    options = Neuron.of_kind(timesteps, kind)
    run = implementation(_way(x, options)).backward
    first, *others = run(x, amplitude, threshold, decay, options, grad, tuple(needs))
    return (first, *(threshold.new_empty(0) if g is None else g for g in others))


@_backward.register_fake
def _(
    x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor, grad: Tensor, needs: list[bool], *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values = (amplitude, threshold, decay)
    others = (torch.empty_like(v) if need else v.new_empty(0) for v, need in zip(values, needs, strict=True))
    return (torch.empty_like(dense(x)), *others)  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[1:4])
    first, *others = _backward(*ctx.saved_tensors, grad, needs, *ctx.options)
    return (first, *(g if need else None for g, need in zip(others, needs, strict=True)), *[None] * len(ctx.options))


neuron.register_autograd(_differentiate, setup_context=_keep)


def _way(x: Tensor, options: Neuron) -> str:
    way = choose(x, options)
    return "loops" if way == "reference" else way
