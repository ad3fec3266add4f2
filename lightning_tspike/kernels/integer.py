"""Neurons and pools of the integer runtime on processors: integer.cpp, called through ctypes.

Spikes travel as bytes: n is kept as n + zero_point, so a ternary spike is 0, 1 or 2 with zero point 1 and a binary one
0 or 1 with zero point 0; a spike of D levels is from 0 to 2 D with zero point D. All tensors have channels last.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .native import compiled

__all__ = ["Current", "is_available", "neuron", "pool", "repeated", "total"]

_SOURCE = Path(__file__).with_name("integer.cpp")
_OTHERWISE = "the kernels of the integer runtime could not be compiled by {}"
_BLOCK, _LONGEST = 64, 4096  # elements that the kernel takes at a time, and that repeated numbers may take


class Current(NamedTuple):
    """One of the currents that a neuron adds up: scale * x, or scale * (x - zero_point) of bytes.

    Attributes:
        x: float32 or uint8, [T*B, C, H, W] with channels last or [T*B, C]; [B, ...] where every step has the same.
        scale: :func:`repeated` numbers of the channels; None for 1.
        zero_point: The byte that is 0.
    """

    x: Tensor
    scale: Tensor | None = None
    zero_point: int = 0


class _Current(ctypes.Structure):
    """``struct Current`` of integer.cpp."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("step", ctypes.c_int64), ("is_bytes", ctypes.c_int32),
        ("zero_point", ctypes.c_float),
    )  # fmt: skip


class _Neuron(ctypes.Structure):
    """``struct Neuron`` of integer.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("timesteps", "size", "period", "count")),
        *((name, ctypes.c_void_p) for name in ("currents", "shift", "threshold", "past", "left", "out")),
        ("decay", ctypes.c_float),
        ("is_ternary", ctypes.c_int32),
    )


class _Pool(ctypes.Structure):
    """``struct Pool`` of integer.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "out")),
        *((name, ctypes.c_int64) for name in (
            "images", "channels", "height", "width", "out_height", "out_width",
            "kernel_height", "kernel_width", "stride_height", "stride_width", "padding_height", "padding_width",
        )),
        *((name, ctypes.c_float) for name in ("zero_point", "scale")),
    )  # fmt: skip


def is_available() -> bool:
    """Whether this machine has a C++ compiler that makes them; where it has not, that is said once."""
    return _library("hard", 1) is not None


def repeated(numbers: Tensor) -> Tensor:
    """Numbers of the channels, [C], as the kernel takes them: repeated until they fill its blocks, float32."""
    return numbers.float().repeat(_period(len(numbers)) // len(numbers)).contiguous()


def neuron(
    currents: Sequence[Current],
    threshold: Tensor,
    timesteps: int,
    *,
    shift: Tensor | None = None,
    decay: float,
    reset: Literal["hard", "soft"],
    is_ternary: bool,
    levels: int = 1,
    static_input: bool = False,
    past: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run a layer of neurons (equations in :mod:`lightning_tspike.functional`) on the sum of some currents.

    Args:
        currents: What is added up, in this order.
        threshold: :func:`repeated` thresholds.
        timesteps: Number of time steps T.
        shift: :func:`repeated` numbers that are added; None for 0.
        decay: Decay tau.
        reset: ``"hard"`` or ``"soft"``.
        is_ternary: False for binary neurons.
        levels: Of the spikes of ternary neurons; more than one with a soft reset.
        static_input: The currents are [B, ...], the same at every time step.
        past: tau * v of the step before the first, float32 [B, ...]; None for 0.
        keep: Give tau * v of the last step as well.

    Returns:
        Spikes as bytes, uint8 [T*B, ...] with zero point ``levels`` (binary neurons: 0), and what ``keep`` asks for.
    """
    if torch.compiler.is_compiling():
        xs, scales, zero_points = _apart(currents)
        options = timesteps, shift, decay, reset, is_ternary, static_input, past, levels
        out, kept = torch.ops.lightning_tspike.integer_neuron(xs, scales, zero_points, threshold, *options)
        return out, kept if keep else None
    xs = [_channels_last(current.x) for current in currents]
    batch = len(xs[0]) if static_input else len(xs[0]) // timesteps
    shape = (batch, *xs[0].shape[1:])
    size = math.prod(shape)
    out = _empty((timesteps * batch, *shape[1:]), torch.uint8)
    left = _empty(shape, torch.float32) if keep else None
    past = None if past is None else _channels_last(past)
    described = _describe(xs, currents, 0 if static_input else size)
    struct = _Neuron(
        timesteps, size, len(threshold), len(xs), ctypes.addressof(described), _address(shift), _address(threshold),
        _address(past), _address(left), _address(out), decay, is_ternary,
    )  # fmt: skip
    _library(reset, levels).integer_neuron(ctypes.byref(struct))
    return out, left


def total(currents: Sequence[Current], shift: Tensor | None = None) -> Tensor:
    """The sum of some currents as float32, [N, C, ...]; arguments as for :func:`neuron`."""
    if torch.compiler.is_compiling():
        return torch.ops.lightning_tspike.integer_total(*_apart(currents), shift)
    xs = [_channels_last(current.x) for current in currents]
    out = _empty(tuple(xs[0].shape), torch.float32)
    described = _describe(xs, currents, 0)
    _library("hard", 1).integer_total(
        described, ctypes.c_int64(len(xs)), ctypes.c_void_p(_address(shift)), ctypes.c_int64(out.numel()),
        ctypes.c_int64(_period(xs[0].shape[1])), ctypes.c_void_p(_address(out)),
    )  # fmt: skip
    return out


def pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    zero_point: int,
    scale: float | None = None,
) -> Tensor:
    """Sum bytes over windows; what lies outside of the map counts as no spike.

    Args:
        x: uint8 [N, C, H, W].
        kernel: Height and width of a window.
        stride: Steps from window to window.
        padding: Rows above and below, columns to the left and right, that lie outside.
        zero_point: The byte that is 0.
        scale: Factor of the result; None for the sums as bytes, which must fit.

    Returns:
        [N, C, H', W'] with channels last: ``scale`` times the sum of the numbers that the bytes stand for, float32; or
        the sum of the bytes, uint8, whose zero point is that of ``x`` times the size of a window.
    """
    if torch.compiler.is_compiling():
        return torch.ops.lightning_tspike.integer_pool(x, kernel, stride, padding, zero_point, scale)
    x = _channels_last(x)
    out = _pooled(x, kernel, stride, padding, scale)
    images, channels, *size = x.shape
    out_size = out.shape[2:]
    struct = _Pool(
        _address(x), _address(out), images, channels, *size, *out_size, *kernel, *stride, *padding, zero_point,
        1.0 if scale is None else scale,
    )  # fmt: skip
    _library("hard", 1).integer_pool(ctypes.byref(struct), ctypes.c_int32(scale is None))
    return out


# For torch.compile the same as operators, which it takes into its graphs as they are. Without it they would cost time.


@torch.library.custom_op("lightning_tspike::integer_neuron", mutates_args=())
def _neuron_operator(
    xs: list[Tensor], scales: list[Tensor], zero_points: list[int], threshold: Tensor, timesteps: int,
    shift: Tensor | None, decay: float, reset: str, is_ternary: bool, static_input: bool, past: Tensor | None,
    levels: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, left = neuron(
        _together(xs, scales, zero_points), threshold, timesteps, shift=shift, decay=decay,
        reset="soft" if reset == "soft" else "hard", is_ternary=is_ternary, levels=levels, static_input=static_input,
        past=past, keep=True,
    )  # fmt: skip
    assert left is not None
    return out, left


@_neuron_operator.register_fake
def _(
    xs: list[Tensor], scales: list[Tensor], zero_points: list[int], threshold: Tensor, timesteps: int,
    shift: Tensor | None, decay: float, reset: str, is_ternary: bool, static_input: bool, past: Tensor | None,
    levels: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch = xs[0].shape[0] if static_input else xs[0].shape[0] // timesteps
    shape = xs[0].shape[1:]
    return _empty((timesteps * batch, *shape), torch.uint8), _empty((batch, *shape), torch.float32)


@torch.library.custom_op("lightning_tspike::integer_total", mutates_args=())
def _total_operator(xs: list[Tensor], scales: list[Tensor], zero_points: list[int], shift: Tensor | None) -> Tensor:
    return total(_together(xs, scales, zero_points), shift)


@_total_operator.register_fake
def _(xs: list[Tensor], scales: list[Tensor], zero_points: list[int], shift: Tensor | None) -> Tensor:
    return _empty(tuple(xs[0].shape), torch.float32)


@torch.library.custom_op("lightning_tspike::integer_pool", mutates_args=())
def _pool_operator(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], zero_point: int, scale: float | None
) -> Tensor:
    window: Any = tuple(kernel), tuple(stride), tuple(padding)
    return pool(x, *window, zero_point=zero_point, scale=scale)


@_pool_operator.register_fake
def _(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], zero_point: int, scale: float | None
) -> Tensor:
    return _pooled(x, kernel, stride, padding, scale)


def _apart(currents: Sequence[Current]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Currents as an operator takes them: an empty tensor for no scale."""
    scales = [current.x.new_empty(0) if current.scale is None else current.scale for current in currents]
    return [current.x for current in currents], scales, [current.zero_point for current in currents]


def _together(xs: list[Tensor], scales: list[Tensor], zero_points: list[int]) -> list[Current]:
    return [Current(x, s if s.numel() else None, z) for x, s, z in zip(xs, scales, zero_points, strict=True)]


def _pooled(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], scale: float | None
) -> Tensor:
    """Memory for the result of a pool."""
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True)]
    return _empty((x.shape[0], x.shape[1], *size), torch.uint8 if scale is None else torch.float32)


@functools.cache
def _library(reset: str, levels: int) -> Any:
    return compiled(_SOURCE, f"-DSOFT={int(reset == 'soft')}", f"-DLEVELS={levels}", otherwise=_OTHERWISE)


def _period(channels: int) -> int:
    """How many elements repeated numbers of the channels take."""
    period = math.lcm(channels, _BLOCK)
    return period if period <= _LONGEST else channels


def _describe(xs: Sequence[Tensor], currents: Sequence[Current], step: int) -> ctypes.Array[_Current]:
    return (_Current * len(xs))(*(
        _Current(_address(x), _address(current.scale), step, x.dtype == torch.uint8, current.zero_point)
        for x, current in zip(xs, currents, strict=True)
    ))  # fmt: skip


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=memory_format)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
