"""The neuron on processors: native.cpp, compiled once by the machine's C++ compiler, called through ctypes.

Nothing depends on a compiler: without one :mod:`lightning_tspike.kernels.loops` does the same.
"""

from __future__ import annotations

import ctypes
import functools
import math
import subprocess
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compiled import compiler, load
from .layout import Layout, Neuron, dense, dense_like

__all__ = ["backward", "compiled", "forward", "has_instructions", "library", "step"]

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fopenmp",
    "-ffp-contract=off",  # spikes must be those of the equations, bit for bit: nothing may be rounded less often
    "-fno-math-errno", "-fno-trapping-math", "-fno-tree-pre",  # without them gcc leaves loops scalar
)  # fmt: skip
# what torch itself uses on this processor, so that a cache shared by several machines is safe
_VECTORS = {
    "AVX2": ("-mavx2",),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"),
}
_REAL = {torch.float32: "float", torch.float64: "double"}
_TILE = 4096  # neurons that a thread takes at a time, ...
_WIDTH = 512  # ... with at most so many channels side by side, each of which has sums of its own
_OTHERWISE = (
    "the neuron's kernel could not be compiled by {}: on the CPU neurons run without it, several times slower; results "
    "are the same"
)
_FEW = 32  # maps of so many places, one block of the kernel, or fewer


class _Neuron(ctypes.Structure):
    """``struct Neuron`` of native.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (
            "timesteps", "x_step", "rows", "columns", "tile_rows", "tile_columns",
            "amplitudes", "thresholds", "channels",
        )),
        *((name, ctypes.c_int32) for name in ("by_column", "is_ternary")),
        ("decay", ctypes.c_double),
    )  # fmt: skip


def forward(x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron) -> Tensor:
    """Spikes a * s, [T*B, ...]; arguments as in :func:`lightning_tspike.kernels.run`."""
    given, x = x, dense(x.to(threshold.dtype))
    out = neuron.empty_output(x)
    x, amplitude, threshold = _few_places(x, amplitude, threshold)
    _, struct = _describe(x, amplitude, threshold, decay, neuron)
    library(neuron, x.dtype).neuron_forward(ctypes.byref(struct), *_pointers(x, amplitude, threshold, out))
    return out.to(given.dtype)


def step(
    x: Tensor, memory: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron
) -> tuple[Tensor, Tensor]:
    """Spikes and memory of one time step, both [B, ...]; see :func:`lightning_tspike.kernels.step`."""
    given, x = x, dense(x.to(threshold.dtype))
    memory = dense_like(memory.to(x.dtype), x)
    out, left = neuron.empty_output(x), torch.empty_like(memory)
    x, amplitude, threshold = _few_places(x, amplitude, threshold)
    _, struct = _describe(x, amplitude, threshold, decay, neuron)
    library(neuron, x.dtype).neuron_step(ctypes.byref(struct), *_pointers(x, memory, amplitude, threshold, out, left))
    return out.to(given.dtype), left


def backward(
    x: Tensor,
    amplitude: Tensor,
    threshold: Tensor,
    decay: Tensor | float,
    neuron: Neuron,
    grad: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients towards x, amplitude, threshold and decay; None for those of the last three that ``needs`` denies."""
    given, x = x, dense(x.to(threshold.dtype))
    grad = dense_like(grad.to(x.dtype), x)
    grad_x = torch.empty_like(x)
    values = amplitude, threshold
    x, amplitude, threshold = _few_places(x, amplitude, threshold)
    layout, struct = _describe(x, amplitude, threshold, decay, neuron)
    blocks, strips = -(-layout.rows // struct.tile_rows), -(-layout.columns // struct.tile_columns)
    sums = torch.zeros(3, blocks, layout.columns if layout.channels == "column" else strips, dtype=torch.float64)
    takes_all = needs[1] or needs[2]
    library(neuron, x.dtype).neuron_backward(
        ctypes.byref(struct), *_pointers(x, amplitude, threshold, grad, grad_x, sums), ctypes.c_int32(takes_all)
    )
    *to_values, to_decay = layout.gradients(sums, amplitude, threshold, needs)
    # each channel's gradient is the sum over its places
    to_values = [g if g is None else g.view(*v.shape, -1).sum(-1) for g, v in zip(to_values, values, strict=True)]
    return grad_x.to(given.dtype), *to_values, to_decay


def _few_places(x: Tensor, amplitude: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Small maps whose channels differ, as vectors of C*H*W channels: loops over a map of its own would be short."""
    places = math.prod(x.shape[2:])
    if x.ndim == 2 or places > _FEW or not x.is_contiguous() or amplitude.ndim == threshold.ndim == 0:
        return x, amplitude, threshold
    amplitude, threshold = (v.repeat_interleave(places) if v.ndim else v for v in (amplitude, threshold))
    return x.flatten(1), amplitude, threshold


def _describe(
    x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron
) -> tuple[Layout, _Neuron]:
    layout = Layout.of(x, neuron.batch(x), amplitude, threshold)
    by_column = layout.channels == "column"
    tile_columns = min(_WIDTH if by_column else _TILE, layout.columns)
    struct = _Neuron(
        timesteps=neuron.timesteps,
        x_step=0 if neuron.static_input else layout.rows * layout.columns,
        rows=layout.rows,
        columns=layout.columns,
        tile_rows=_TILE // tile_columns if by_column else 1,
        tile_columns=tile_columns,
        amplitudes=amplitude.numel(),
        thresholds=threshold.numel(),
        channels=layout.count,
        by_column=by_column,
        is_ternary=neuron.is_ternary,
        decay=float(decay),
    )
    return layout, struct


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def has_instructions(name: str) -> bool:
    """Whether this processor has some instructions, such as ``"avx512_vnni"`` or ``"avx_vnni"``."""
    describe = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that is supported
    if describe is not None:
        return bool(describe().get(name))
    known = {
        "avx2": torch.cpu._is_avx2_supported,
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        "avx512_vnni": torch.cpu._is_vnni_supported,
    }
    return name in known and known[name]()


def library(neuron: Neuron, dtype: torch.dtype) -> Any:
    """The compiled library for one kind of neuron and precision; None where it cannot be had, which is said once."""
    return _library(dtype, neuron.reset, neuron.detach_reset, neuron.surrogate, neuron.levels)


@functools.cache
def _library(dtype: torch.dtype, reset: str, detach_reset: bool, surrogate: str, levels: int = 1) -> ctypes.CDLL | None:
    """The compiled library for one kind of neuron; None where it cannot be had."""
    return compiled(
        _SOURCE,
        f"-DREAL={_REAL[dtype]}", f"-DSOFT={int(reset == 'soft')}", f"-DDETACH={int(detach_reset)}",
        f"-DSURROGATE={surrogate.upper()}", f"-DLEVELS={levels}",
    )  # fmt: skip


def compiled(source: Path, *kind: str, otherwise: str = _OTHERWISE) -> ctypes.CDLL | None:
    """A C++ file of this folder as a library for this processor; None where it cannot be had, which is said once.

    Args:
        source: The file.
        kind: Flags that say which of its kinds.
        otherwise: What could not be compiled then, and what that means.
    """
    with _compiling:
        if (cxx := _compiler()) is None or (cxx, source) in _failed:
            return None
        try:
            vectors = _VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())
            return load(source, cxx, (*_FLAGS, *vectors, *kind))
        except (OSError, subprocess.SubprocessError) as error:
            # it may have taken half a minute, which no other kind of this file shall wait for again
            _failed.add((cxx, source))
            said = getattr(error, "stderr", None) or error
            warnings.warn(f"{otherwise.format(' '.join(cxx))}. It said: {said}", stacklevel=2)
            return None


_compiling = threading.Lock()
_failed: set[tuple[tuple[str, ...], Path]] = set()  # compilers and files that they did not do in this process


@functools.cache
def _compiler() -> tuple[str, ...] | None:
    """The compiler, or None where neurons must do without, which is said once."""
    if (cxx := compiler()) is None:
        warnings.warn(
            "no C++ compiler was found ($CXX, c++, g++, clang++): on the CPU neurons run without one, several times "
            "slower; results are the same",
            stacklevel=2,
        )
    return cxx
