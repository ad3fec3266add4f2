"""A convolution of spikes that skips silence, on processors with AVX512_VNNI: sparse.cpp, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .native import compiled, has_instructions

__all__ = ["LARGEST", "convolution", "is_available", "pack", "takes", "unpack"]

_SOURCE = Path(__file__).with_name("sparse.cpp")
LARGEST = 127
"""The greatest absolute value of the whole numbers that it reads."""

_CHANNELS = 64  # of which the input must have a multiple, and the output
_LANES = 16
_OTHERWISE = (
    "the convolution that skips silence could not be compiled by {}: layers do without it; results are the same"
)

_Pair = tuple[int, int]


class _Convolution(ctypes.Structure):
    """``struct Convolution`` of sparse.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("spikes", "weights", "scale", "bias", "out")),
        *((name, ctypes.c_int64) for name in (
            "images", "channels", "height", "width", "out_channels", "out_height", "out_width",
            "kernel_height", "kernel_width", "stride_height", "stride_width", "padding_height", "padding_width",
        )),
        ("zero_point", ctypes.c_int32),
    )  # fmt: skip


def is_available() -> bool:
    """Whether this machine has the instructions, and a C++ compiler."""
    return has_instructions("avx512_vnni") and _library() is not None


def takes(conv: nn.Conv2d) -> bool:
    """Whether there is a kernel for such a convolution."""
    is_plain = conv.groups == 1 and conv.dilation == (1, 1)
    return is_plain and conv.in_channels % _CHANNELS == 0 and conv.out_channels % _CHANNELS == 0


def pack(weight: Tensor) -> Tensor:
    """Weights int8 [C_out, C, K_h, K_w] as the kernel takes them: uint8 [parts, K_h, K_w, C / 4, C_out / parts, 4]."""
    out_channels, channels, *kernel = weight.shape
    part = _LANES * _vectors(out_channels)
    split = weight.reshape(out_channels // part, part, channels // 4, 4, *kernel)
    return (split.permute(0, 4, 5, 2, 1, 3).to(torch.int16) + 128).to(torch.uint8).contiguous()


def unpack(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack`."""
    parts, height, width, fours, part, _ = packed.shape
    split = (packed.to(torch.int16) - 128).to(torch.int8).permute(0, 4, 3, 5, 1, 2)
    return split.reshape(parts * part, fours * 4, height, width).contiguous()


def convolution(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor, zero_point: int, stride: _Pair, padding: _Pair
) -> Tensor:
    """Convolve: scale * (sum of spikes times int8 weights) + bias.

    Args:
        x: Spikes as bytes, uint8 [N, C, H, W]; what they stand for is from -128 to 127.
        packed: From :func:`pack`.
        scale: float32 [C_out].
        bias: float32 [C_out].
        zero_point: The byte that is 0.
        stride: Steps from window to window.
        padding: Rows above and below, columns to the left and right, of zeros.

    Returns:
        float32 [N, C_out, H', W'] with channels last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, *size = x.shape
    kernel = packed.shape[1:3]
    out_size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
    out = torch.empty(images, len(scale), *out_size, memory_format=torch.channels_last)
    struct = _Convolution(
        *(t.data_ptr() for t in (x, packed, scale, bias, out)), images, channels, *size, len(scale), *out_size,
        *kernel, *stride, *padding, zero_point,
    )  # fmt: skip
    _library().sparse_convolution(ctypes.byref(struct), ctypes.c_int32(_vectors(len(scale))))
    return out


def _vectors(out_channels: int) -> int:
    """How many vectors of output channels are taken at a time."""
    return next(vectors for vectors in (16, 8, 4) if out_channels % (_LANES * vectors) == 0)


@functools.cache
def _library() -> Any:
    return compiled(_SOURCE, "-mavx512vnni", otherwise=_OTHERWISE)
