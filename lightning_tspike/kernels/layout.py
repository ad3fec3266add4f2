"""What a kernel needs to know: the neuron's options, and how its tensors lie in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Layout", "Neuron", "dense", "dense_like", "is_dense", "per_channel"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Neuron(NamedTuple):
    """Options of a neuron, as in :func:`lightning_tspike.functional.ternary_lif`."""

    timesteps: int
    reset: Literal["hard", "soft"]
    detach_reset: bool
    surrogate: Literal["rectangular", "triangular", "arctan"]
    is_ternary: bool
    static_input: bool
    levels: int = 1

    @property
    def taken(self) -> int:
        """How many thresholds a soft reset takes for each level of a spike."""
        return 1 if self.levels == 1 else 2

    @property
    def kind(self) -> str:
        """All of it except T as one text, which an operator of torch can be given."""
        numbers = f"{self.is_ternary:d} {self.static_input:d} {self.levels}"
        return f"{self.reset} {self.detach_reset:d} {self.surrogate} {numbers}"

    @classmethod
    def of_kind(cls, timesteps: int, kind: str) -> Neuron:
        """The inverse of :attr:`kind`."""
        reset, detach_reset, surrogate, is_ternary, static_input, levels = kind.split()
        known: Any = reset, detach_reset == "1", surrogate, is_ternary == "1", static_input == "1", int(levels)
        return cls(timesteps, *known)

    def batch(self, x: Tensor) -> int:
        """B, of a current [T*B, ...], or [B, ...] with ``static_input``."""
        return x.shape[0] if self.static_input else x.shape[0] // self.timesteps

    def empty_output(self, x: Tensor) -> Tensor:
        """Memory for spikes [T*B, ...] of a dense ``x``, in its dtype and memory format."""
        shape = (self.timesteps * self.batch(x), *x.shape[1:])
        memory_format = torch.contiguous_format if x.is_contiguous() else _CHANNELS_LAST[x.ndim]
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


@dataclass(frozen=True)
class Layout:
    """A current [T*B, ...] seen in memory as [T, rows, columns], so that channels are easy to find.

    ============ ================================ ============ ============ ==========================================
    channels     tensor                           rows         columns      what has gradients of its own
    ============ ================================ ============ ============ ==========================================
    ``None``     one amplitude and threshold      1            N = B*C*...  all neurons together
    ``"row"``    [T*B, C, ...], contiguous        B*C          H*W*...      a row's channel is ``row % C``
    ``"column"`` [T*B, C] or channels_last        B*H*W*...    C            a column is a channel
    ============ ================================ ============ ============ ==========================================

    Attributes:
        rows: Number of rows.
        columns: Number of columns.
        channels: Where channels are, as in the table.
        count: Number of channels C; 1 where nothing depends on them.
    """

    rows: int
    columns: int
    channels: Literal["row", "column"] | None
    count: int

    @classmethod
    def of(cls, x: Tensor, batch: int, *values: Tensor) -> Layout:
        """The layout of a dense ``x`` (see :func:`dense`) whose values per time step have ``batch`` as dimension 0.

        Args:
            x: Current, [T*B, ...], or [B, ...] where it is the same at every time step.
            batch: B.
            values: Amplitude and threshold, shape [] or [C].
        """
        numel = batch * math.prod(x.shape[1:])
        if all(value.ndim == 0 for value in values):
            return cls(1, numel, None, 1)
        count = x.shape[1]
        if x.ndim == 2 or not x.is_contiguous():
            return cls(numel // count, count, "column", count)
        return cls(batch * count, numel // (batch * count), "row", count)

    def gradients(
        self, sums: Tensor, amplitude: Tensor, threshold: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients towards amplitude, threshold and decay, each from what tiles have summed; None where not needed."""
        values = (amplitude, threshold, threshold.new_empty(()))
        return tuple(self._reduce(s, v) if need else None for s, v, need in zip(sums, values, needs, strict=True))

    def _reduce(self, sums: Tensor, like: Tensor) -> Tensor:
        """Add up what tiles have summed: a gradient of the shape of ``like``, [] or [C].

        Args:
            sums: [tiles], [rows, tiles of a row] or [blocks of rows, columns], by ``channels``.
            like: The value that it is the gradient of.
        """
        if like.ndim == 0:
            return sums.sum().to(like.dtype)
        if self.channels == "row":
            return sums.view(-1, self.count, sums.shape[-1]).sum((0, 2)).to(like.dtype)
        return sums.sum(0).to(like.dtype)


def per_channel(value: Tensor, x: Tensor) -> Tensor:
    """Shape a [C] tensor so that it broadcasts along the channels of x [T*B, C, ...], dimension 1.

    Raises:
        ValueError: x has another number of channels.
    """
    if value.ndim == 0:
        return value
    if value.ndim > 1 or x.ndim < 2 or len(value) != x.shape[1]:
        raise ValueError(
            f"amplitude or threshold of shape {tuple(value.shape)} for {len(value)} channels, but x has shape "
            f"{tuple(x.shape)}"
        )
    return value.view(-1, *[1] * (x.ndim - 2))


def is_dense(x: Tensor) -> bool:
    """Whether the elements of ``x`` fill memory with dimension 0 outermost and channels first or last."""
    return x.is_contiguous() or _is_channels_last(x)


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is dense, else a copy that is."""
    return x if is_dense(x) else x.contiguous()


def dense_like(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` in the memory format of ``x``, [T*B, ...] both but for the first dimension; a copy where it differs."""
    if x.is_contiguous():
        return grad.contiguous()
    return grad if _is_channels_last(grad) else grad.contiguous(memory_format=_CHANNELS_LAST[grad.ndim])


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim in _CHANNELS_LAST and x.is_contiguous(memory_format=_CHANNELS_LAST[x.ndim])
