"""Spikes at a few bits each, kept so for the backward pass by whatever saves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..kernels import is_dense, per_channel
from ..neurons import SpikingNeuron

__all__ = ["CHANGED", "KeepPacked", "KnownSpikes", "PackedSpikes", "is_checkpointing"]

_MAX_POOLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d}

_MOST_OF_HALF_A_BYTE = 7  # levels: 15 numbers

CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: weights or inputs "
    "were changed between the forward pass and backward()"
)


class PackedSpikes:
    """Ternary spikes a * s at 2 bits each: 0, 1 and 2 for s = 0, +1 and -1, four to a byte, in the order of memory.

    Spikes of up to 7 levels take 4 bits each, of more a byte, which holds s + levels.

    Args:
        spikes: a * s, its elements filling memory without gaps.
        amplitude: a > 0, shape [] or [C].
        levels: Of the spikes.
    """

    def __init__(self, spikes: Tensor, amplitude: Tensor, levels: int = 1) -> None:
        self.amplitude, self.levels = amplitude, levels
        self.dtype, self.shape, self.strides = spikes.dtype, spikes.shape, spikes.stride()
        flat = spikes.as_strided((spikes.numel(),), (1,))
        if levels == 1:
            codes = (flat > 0).to(torch.uint8).add_(flat < 0, alpha=2)
            codes = F.pad(codes, (0, -len(codes) % 4)).view(-1, 4)
            self.codes = codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
            return
        a = self._amplitude_for(spikes)
        s = (spikes.to(a.dtype) / a).round_().nan_to_num_(0)  # NaN: of an amplitude of 0
        self.codes = s.as_strided((s.numel(),), (1,)).add_(levels).to(torch.uint8)
        if levels <= _MOST_OF_HALF_A_BYTE:
            codes = F.pad(self.codes, (0, len(self.codes) % 2)).view(-1, 2)
            self.codes = codes[:, 0] | codes[:, 1] << 4

    def unpack(self) -> Tensor:
        """The spikes, bit for bit, in their dtype and memory format."""
        if self.levels > 1:
            codes = self.codes
            if self.levels <= _MOST_OF_HALF_A_BYTE:
                codes = torch.stack([codes & 15, codes >> 4], dim=1).view(-1)
            flat = codes[: self.shape.numel()].to(torch.promote_types(self.dtype, torch.float32)).sub_(self.levels)
            s = flat.as_strided(self.shape, self.strides)
            return s.mul_(self._amplitude_for(s)).to(self.dtype)  # rounded once, as the neuron does
        table = _table(self.codes.device, self.dtype)  # [256, 4]
        flat = table.index_select(0, self.codes.int()).view(-1)
        spikes = flat[: self.shape.numel()].as_strided(self.shape, self.strides)
        return spikes.mul_(per_channel(self.amplitude.to(self.dtype), spikes))

    def _amplitude_for(self, spikes: Tensor) -> Tensor:
        """In the precision in which the neuron multiplied."""
        return per_channel(self.amplitude.to(torch.promote_types(self.dtype, torch.float32)), spikes)


class _Known:
    """What is known of a tensor of spikes, as long as nothing has written to it."""

    def __init__(self, spikes: Tensor, amplitude: Tensor, levels: int) -> None:
        self.amplitude, self.levels = amplitude, levels
        self.version = spikes._version
        self.packed: PackedSpikes | None = None  # made once, however many layers keep it

    def pack(self, spikes: Tensor) -> PackedSpikes:
        self.packed = self.packed or PackedSpikes(spikes.detach(), self.amplitude, self.levels)
        return self.packed


class KnownSpikes:
    """Which tensors of one call hold spikes.

    Tensors are told apart by identity and not kept alive; the thread of the call alone uses it.
    """

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def add(self, spikes: Tensor, amplitude: Tensor, levels: int) -> None:
        """Note that ``spikes`` are a * s, with ``amplitude`` a; only those that fill memory without gaps are packed."""
        if is_dense(spikes):
            self._known[spikes] = _Known(spikes, amplitude, levels)

    def add_output(self, neuron: SpikingNeuron, spikes: Tensor) -> None:
        """Note what a neuron emits: ``amplitude`` is that of now, whatever the optimizer does later."""
        with torch.no_grad():  # as a block that is run again does not come by here, it must save nothing
            amplitude = neuron.amplitude
            copied = amplitude.clone() if isinstance(amplitude, Tensor) else spikes.new_full((), amplitude)
        self.add(spikes, copied, neuron.levels)

    def copy_of(self, x: Any) -> Callable[[Tensor], None] | None:
        """What notes that a tensor holds some of the spikes of ``x``; None where that is not known to hold spikes."""
        known = self._of(x)
        return None if known is None else lambda spikes: self.add(spikes, known.amplitude, known.levels)

    @contextmanager
    def packing(self, x: Any) -> Iterator[None]:
        """What is saved of ``x`` within is saved packed, where it holds spikes.

        Activation checkpointing saves as it likes.
        """
        known = self._of(x)
        if known is None or is_checkpointing():
            yield
            return
        argument = [x]

        def pack(saved: Tensor) -> PackedSpikes | tuple[Tensor, int]:
            # what is saved is another Tensor object, but the same memory in the same order
            same = argument[0]
            is_same = (saved.data_ptr(), saved.shape, saved.stride()) == (same.data_ptr(), same.shape, same.stride())
            # and nothing has been written to it, as a function that works in place does
            return known.pack(same) if is_same and same._version == known.version else (saved, saved._version)

        with saved_tensors_hooks(pack, _unpack):
            yield
        argument.clear()  # autograd keeps the hook, which must not keep the spikes

    def _of(self, x: Any) -> _Known | None:
        known: _Known | None = self._known.get(x) if isinstance(x, Tensor) else None
        return known if known is not None and known.version == x._version else None


class KeepPacked(TorchFunctionMode):
    """Whatever a torch function saves of its first argument, it saves packed where that is ``known``."""

    def __init__(self, known: KnownSpikes) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        note_copy = self.known.copy_of(x)
        if note_copy is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        with self.known.packing(x):
            out = func(*args, **kwargs)
        if func in _MAX_POOLS and isinstance(out, Tensor):
            note_copy(out)
        return out


def is_checkpointing() -> bool:
    """Whether something else, as activation checkpointing, already says how tensors are saved."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _unpack(kept: PackedSpikes | tuple[Tensor, int]) -> Tensor:
    if isinstance(kept, PackedSpikes):
        return kept.unpack()
    saved, version = kept
    if saved._version != version:  # autograd looks at that itself only where there are no hooks
        raise RuntimeError(CHANGED)
    return saved


def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a byte of four codes stands for, [256, 4]."""
    byte = torch.arange(256, device=device)
    codes = torch.stack([byte >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    return torch.where(codes == 2, -1, codes).to(dtype)
