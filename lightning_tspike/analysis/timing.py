"""Clocks for comparisons: what is compared is timed in turn, in one run, with what the machine is beside it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["in_turn", "machine", "ratio", "seconds"]

K = TypeVar("K")


def machine(device: str, packages: Iterable[str] = ("torch", "timm", "onnxruntime")) -> dict[str, Any]:
    """What runs the measurements: processor or GPU, threads, versions of packages (None: not installed)."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "processor": names[0] if names else platform.processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def seconds(function: Callable[[], Any], device: str) -> float:
    """How long one call takes."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    functions: Mapping[K, Callable[[], Any]],
    device: str,
    *,
    rounds: int,
    uncounted: int = 2,
    calls: int = 1,
    after_each: Callable[[], Any] = lambda: None,
) -> dict[K, list[float]]:
    """Seconds a call of each function, one after the other in every round: what slows the machine down slows all.

    Args:
        functions: What to measure, by name.
        device: ``"cpu"`` or ``"cuda"``.
        rounds: Rounds that count.
        uncounted: Rounds before them.
        calls: Calls of each function in a round; their mean is its time.
        after_each: Called after each function in each round, outside of what is timed: it may move a progress bar.
    """
    times: dict[K, list[float]] = {name: [] for name in functions}
    for i in range(uncounted + rounds):
        for name, function in functions.items():
            time_ = seconds(lambda f=function: [f() for _ in range(calls)], device) / calls  # type: ignore[misc]
            if i >= uncounted:
                times[name].append(time_)
            after_each()
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))
