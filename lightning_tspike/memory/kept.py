"""Measure what a forward pass leaves in memory for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["kept_bytes"]


def kept_bytes(function: Callable[[], Any], device: str) -> int:
    """Bytes that are held when ``function`` has returned, and its result is still there, and were not before.

    Args:
        function: A forward pass, which returns the loss.
        device: Where it runs, ``"cpu"`` or ``"cuda"``.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        result = function()
        kept = torch.cuda.memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            result = function()
        kept = sum(event.self_cpu_memory_usage for event in recorded.key_averages())
    del result
    return kept
