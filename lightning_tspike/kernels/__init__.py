"""Fused neurons: all time steps in one pass over memory, forward and backward.

============ ======================== ==================================================================================
name         runs on                  how
============ ======================== ==================================================================================
``native``   CPU, with a C++ compiler native.cpp, compiled at first use
``triton``   CUDA                     triton_kernels.py
``loops``    anything                 torch's operations; also what ``torch.compile`` sees
============ ======================== ==================================================================================

All of them do the same: forward reads the current once and writes the spikes once; backward reads the current and the
incoming gradient once, computes membrane potentials and spikes again, and writes the gradient once. Beside the current
nothing is kept for backward. The spikes in single and double precision are those of
:func:`lightning_tspike.functional.integrate_and_fire`, bit for bit.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import loops, native
from .layout import Neuron, is_dense, per_channel

__all__ = ["NAMES", "Neuron", "can_compile", "choose", "is_dense", "per_channel", "run", "use"]

NAMES = ("native", "triton", "loops")

_override: ContextVar[str | None] = ContextVar("override", default=None)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run neurons in one way while the block lasts; for tests and measurements.

    Args:
        name: ``"native"``, ``"triton"``, ``"loops"``, or ``"reference"``: the equations of
            :mod:`lightning_tspike.functional`, differentiated by autograd.

    Raises:
        ValueError: There is no such way.
    """
    if name not in (*NAMES, "reference"):
        raise ValueError(f"name must be one of {[*NAMES, 'reference']}, got {name!r}")
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def choose(x: Tensor, neuron: Neuron) -> str:
    """The way in which these neurons run on ``x``: a name of :func:`use`."""
    if torch.compiler.is_compiling():
        return "loops"
    if (name := _override.get()) is not None:
        return name
    if x.numel() == 0 or type(x) not in (Tensor, torch.nn.Parameter) or torch.jit.is_tracing():
        return "reference"  # nothing to be fast at; more, or less, than numbers in memory
    if x.device.type == "cuda" and _has_triton():
        return "triton"
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu" and native.library(neuron, dtype) is not None:
        return "native"
    return "loops"


def run(name: str, x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron) -> Tensor:
    """Run a layer of neurons.

    Args:
        name: How: one of :data:`NAMES`.
        x: Current, [T*B, ...] with time outermost, or [B, ...] with ``neuron.static_input``.
        amplitude: Spike amplitude a, shape [] or [C], in the precision in which the membrane potential is computed.
        threshold: Firing threshold theta, likewise.
        decay: Decay tau, a number or shape [].
        neuron: Everything else.

    Returns:
        Spikes a * s, [T*B, ...] in the dtype of ``x``. They can be differentiated once.
    """
    return _Fused.apply(x, amplitude, threshold, decay, neuron, name)


class _Fused(torch.autograd.Function):
    """Arguments of :func:`run` -> spikes; keeps the current and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron, name: str
    ) -> Tensor:
        learns_decay = isinstance(decay, Tensor)
        ctx.save_for_backward(x, amplitude, threshold, *((decay,) if learns_decay else ()))
        ctx.decay, ctx.neuron, ctx.name = None if learns_decay else decay, neuron, name
        return _implementation(name).forward(x, amplitude, threshold, decay, neuron)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, amplitude, threshold, *rest = ctx.saved_tensors
        decay = rest[0] if rest else ctx.decay
        needs = ctx.needs_input_grad[1:4]
        grads = _implementation(ctx.name).backward(x, amplitude, threshold, decay, ctx.neuron, grad, needs)
        return *grads, None, None


def _implementation(name: str) -> ModuleType:
    if name == "triton":  # not imported before: it is not there on every platform
        from . import triton_kernels

        return triton_kernels
    return native if name == "native" else loops


def can_compile(device: str) -> bool:
    """Whether there is what torch.compile and the kernels here need for a kind of device, ``"cpu"`` or ``"cuda"``.

    On the CPU that is a C++ compiler, on GPUs Triton, which calls a C compiler.
    """
    if device == "cpu":
        return native.compiler() is not None
    names = (os.environ.get("CC"), "gcc", "clang", "cc")
    has_compiler = any(name and shutil.which(name) for name in names)
    return importlib.util.find_spec("triton") is not None and has_compiler


@functools.cache
def _has_triton() -> bool:
    if can_compile("cuda"):
        return True
    warnings.warn(
        "Triton or a C compiler for it ($CC, gcc, clang) was not found: on the GPU neurons run without them, several "
        "times slower; results are the same",
        stacklevel=2,
    )
    return False
