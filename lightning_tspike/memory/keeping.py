"""The modes of ``memory``: setting a network up for one, and running it in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import nn

from .._calls import Call
from .packed import KeepPacked, KnownSpikes
from .recompute import install, recompute, remove

__all__ = ["MEMORY_MODES", "MemoryMode", "keeping", "set_up"]

MemoryMode: TypeAlias = Literal["full", "packed", "lean"]
MEMORY_MODES: tuple[MemoryMode, ...] = ("full", "packed", "lean")


def set_up(model: nn.Module, memory: MemoryMode) -> None:
    """Prepare the layers of ``model`` for calls that keep what ``memory`` says.

    Raises:
        ValueError: ``memory`` is none of :data:`MEMORY_MODES`.
    """
    if memory not in MEMORY_MODES:
        raise ValueError(f"memory must be one of {MEMORY_MODES}, got {memory!r}")
    if memory == "lean":
        install(model)
    else:
        remove(model)


@contextmanager
def keeping(memory: MemoryMode, call: Call) -> Iterator[None]:
    """Run the layers of a network within, as ``call``, keeping for their backward pass what ``memory`` says."""
    if memory == "full" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    known = KnownSpikes()
    call.on_spikes = known.add_output
    call.recompute = partial(recompute, known) if memory == "lean" else None
    try:
        with KeepPacked(known):
            yield
    finally:
        call.on_spikes = call.recompute = None  # a backward pass that runs layers again finds a plain call
