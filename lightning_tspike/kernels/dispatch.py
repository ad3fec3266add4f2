"""Which implementation of the fused neurons runs where."""

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

import torch
from torch import Tensor

from .._plain import is_plain
from . import loops, native
from .compiled import compiler
from .layout import Neuron

__all__ = ["NAMES", "can_compile", "choose", "implementation", "use"]

NAMES = ("native", "triton", "loops")

_override: ContextVar[str | None] = ContextVar("override", default=None)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run neurons in one way while the block lasts; for tests and measurements.

    Args:
        name: ``"native"``, ``"triton"``, ``"loops"``, or ``"reference"``: the equations of
            :mod:`lightning_tspike.functional`, differentiated by autograd, which run in any case where there are no
            numbers in memory for a kernel to read.

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
    """The way in which these neurons run on ``x``: a name of :func:`use`, or ``"operator"`` for torch.compile."""
    if torch.compiler.is_exporting():
        return "reference"  # what is exported must run where this package is not
    if torch.compiler.is_compiling():
        return "reference" if torch._C._are_functorch_transforms_active() else "operator"
    if not is_plain(x) or x.numel() == 0:
        return "reference"
    if (name := _override.get()) is not None:
        return name
    if x.device.type == "cuda" and _has_triton():
        return "triton"
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu" and native.library(neuron, dtype) is not None:
        return "native"
    return "loops"


def implementation(name: str) -> ModuleType:
    """The module of a way but ``"reference"``; all have ``forward`` and ``backward``."""
    if name == "triton":  # not imported before: it is not there on every platform
        from . import triton_kernels

        return triton_kernels
    return native if name == "native" else loops


def can_compile(device: str) -> bool:
    """Whether there is what torch.compile and the kernels here need for a kind of device, ``"cpu"`` or ``"cuda"``.

    On the CPU that is a C++ compiler, on GPUs Triton, which calls a C compiler.
    """
    if device == "cpu":
        return compiler() is not None
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
