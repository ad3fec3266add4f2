"""The neuron on processors: native.cpp, compiled once by the machine's C++ compiler, called through ctypes.

Nothing depends on a compiler: without one :mod:`lightning_tspike.kernels.loops` does the same. The library is kept in
``$XDG_CACHE_HOME/lightning-tspike`` (default ``~/.cache``), under a name that its source, flags and compiler determine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layout import Layout, Neuron, dense, dense_like

__all__ = ["backward", "compiler", "forward", "library"]

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
_TILE = 4096  # neurons that a thread takes at a time


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
    _, struct = _describe(x, amplitude, threshold, decay, neuron)
    out = neuron.empty_output(x)
    library(neuron, x.dtype).neuron_forward(ctypes.byref(struct), *_pointers(x, amplitude, threshold, out))
    return out.to(given.dtype)


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
    layout, struct = _describe(x, amplitude, threshold, decay, neuron)
    grad = dense_like(grad.to(x.dtype), x)
    grad_x = torch.empty_like(x)
    blocks, strips = -(-layout.rows // struct.tile_rows), -(-layout.columns // struct.tile_columns)
    sums = torch.zeros(3, blocks, layout.columns if layout.channels == "column" else strips, dtype=torch.float64)
    takes_all = needs[1] or needs[2]
    library(neuron, x.dtype).neuron_backward(
        ctypes.byref(struct), *_pointers(x, amplitude, threshold, grad, grad_x, sums), ctypes.c_int32(takes_all)
    )
    return grad_x.to(given.dtype), *layout.gradients(sums, amplitude, threshold, needs)


def _describe(
    x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron
) -> tuple[Layout, _Neuron]:
    layout = Layout.of(x, neuron.batch(x), amplitude, threshold)
    by_column = layout.channels == "column"
    struct = _Neuron(
        timesteps=neuron.timesteps,
        x_step=0 if neuron.static_input else layout.rows * layout.columns,
        rows=layout.rows,
        columns=layout.columns,
        tile_rows=max(1, _TILE // layout.columns) if by_column else 1,
        tile_columns=min(_TILE, layout.columns),
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


def library(neuron: Neuron, dtype: torch.dtype) -> Any:
    """The compiled library for one kind of neuron and precision; None where it cannot be had, which is said once."""
    return _library(dtype, neuron.reset, neuron.detach_reset, neuron.surrogate)


def compiler() -> str | None:
    """Path of the machine's C++ compiler: ``$CXX``, ``c++``, ``g++`` or ``clang++``; None where there is none."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@functools.cache
def _command() -> tuple[str, ...] | None:
    """The compiler and its flags, or None where neurons must do without."""
    if (cxx := compiler()) is None:
        warnings.warn(
            "no C++ compiler was found ($CXX, c++, g++, clang++): on the CPU neurons run without one, several times "
            "slower; results are the same",
            stacklevel=2,
        )
        return None
    return cxx, *_FLAGS, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())


@functools.cache
def _library(dtype: torch.dtype, reset: str, detach_reset: bool, surrogate: str) -> ctypes.CDLL | None:
    """The compiled library for one kind of neuron; None where it cannot be had."""
    if (command := _command()) is None:
        return None
    kind = (
        f"-DREAL={_REAL[dtype]}", f"-DSOFT={int(reset == 'soft')}", f"-DDETACH={int(detach_reset)}",
        f"-DSURROGATE={surrogate.upper()}",
    )  # fmt: skip
    try:
        return ctypes.CDLL(str(_compiled(*command, *kind)))
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"the neuron's kernel could not be compiled by {command[0]}: on the CPU neurons run without it, several "
            f"times slower; results are the same. It said: {getattr(error, 'stderr', None) or error}",
            stacklevel=2,
        )
        return None


def _compiled(cxx: str, *flags: str) -> Path:
    """Path of the library; it is compiled where the cache does not have it, in one to two seconds."""
    identity = (_SOURCE.read_bytes(), flags, cxx, os.path.getmtime(cxx), platform.machine())
    name = f"native-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-tspike"
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder))
    except (OSError, RuntimeError):  # no home, or none that can be written to: for this process alone
        folder = scratch = Path(tempfile.mkdtemp(prefix="lightning-tspike-"))
    if (folder / name).exists():
        scratch.rmdir()
        return folder / name
    try:
        # Linked without OpenMP: torch has loaded one already, whose threads torch.set_num_threads governs. A second
        # one would fight it for the cores.
        for command in (
            [cxx, *flags, "-c", str(_SOURCE), "-o", str(scratch / "native.o")],
            [cxx, "-shared", str(scratch / "native.o"), "-o", str(scratch / name)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(scratch / name, folder / name)
    finally:
        (scratch / "native.o").unlink(missing_ok=True)
        if scratch != folder:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder / name
