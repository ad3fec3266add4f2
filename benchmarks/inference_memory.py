"""Memory of inference, in a process of its own for each way to run a network.

    python -m benchmarks.inference_memory RUNTIME FILE [--batches 1,8] [--size 224] [--threads 2]

is one such process; it prints a line of JSON. RUNTIME is one of ``lightning_tspike.analysis.runtimes.RUNTIMES``, or
``ANN`` and one of ``FLOAT32``; FILE has a folded network, by torch.save. What counts are resident pages, and not what
an allocator of torch's was asked for, because oneDNN and the neurons' kernels take memory of their own:

* held: pages more than before the network was loaded, after two forward passes: weights, and what a runtime makes of
  them. Another one has been loaded, run and deleted before, so libraries and threads are not counted;
* peak of a forward pass: the high-water mark of the third pass (Linux resets it on request, VmHWM) above what is held.

So that freed memory does not hide what is taken again, the C library gives every block of 64 KB and more back at once
(MALLOC_MMAP_THRESHOLD_), in all processes alike.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tspike.analysis.runtimes import FLOAT32, RUNTIMES, Run, RuntimeMissingError, ann_of
from lightning_tspike.network import SpikingNetwork

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 26), "MALLOC_ARENA_MAX": "1"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ANN = "ANN "


def measure_memory(
    runtimes: Sequence[str], file: Path, *, batches: Sequence[int], size: int, threads: int
) -> list[dict[str, Any]]:
    """Rows for each runtime that is there; empty where the system does not tell a process's peak (not Linux)."""
    if not CLEAR.exists():
        return []
    rows: list[dict[str, Any]] = []
    for runtime in runtimes:
        command = [
            sys.executable, "-W", "ignore", "-m", __name__, runtime, str(file), "--size", str(size),
            "--batches", ",".join(map(str, batches)), "--threads", str(threads),
        ]  # fmt: skip
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        here = Path(__file__).resolve().parents[1]
        run = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr}")
        rows += json.loads(run.stdout.splitlines()[-1])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one runtime in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_memory")
    parser.add_argument("runtime", choices=[*RUNTIMES, *(_ANN + name for name in FLOAT32)])
    parser.add_argument("file", type=Path)
    parser.add_argument("--batches", type=numbers, default=[1])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        rows = [_measure(options, batch) for batch in options.batches]
    except RuntimeMissingError:
        rows = []
    print(json.dumps(rows))


def numbers(text: str) -> list[int]:
    """``"1,8"`` as [1, 8]."""
    return [int(word) for word in text.split(",")]


@torch.no_grad()
def _measure(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    size = options.size
    images = torch.randn(batch, _load(options.file).input_size[0], size, size)
    _run(options, images)()  # libraries are loaded, threads started: memory that is no network's
    before = _pages("VmRSS")
    run = _run(options, images)
    run()
    run()
    held = _pages("VmRSS")
    CLEAR.write_text("5")  # the high-water mark starts again from here, see proc(5)
    run()
    peak = _pages("VmHWM", collect=False)
    return {
        "runtime": options.runtime,
        "batch": batch,
        "held, MiB": (held - before) / 2**20,
        "peak of a forward pass, MiB": (peak - held) / 2**20,
    }


def _run(options: argparse.Namespace, images: Tensor) -> Run:
    network = _load(options.file)
    if options.runtime.startswith(_ANN):
        return FLOAT32[options.runtime.removeprefix(_ANN)](ann_of(network), images)
    return RUNTIMES[options.runtime](network, images)


def _load(file: Path) -> SpikingNetwork:
    network: SpikingNetwork = torch.load(file, weights_only=False)  # our own file, of a moment ago
    return network


def _pages(name: str, *, collect: bool = True) -> int:
    """Bytes that the system counts for this process, without what is free but not yet given back."""
    if collect:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
