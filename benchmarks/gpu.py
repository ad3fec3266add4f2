"""All that is to be measured on a GPU, by one command.

    python -m benchmarks.gpu [--output FOLDER]

1. Every option of the fused neurons against the equations, on the GPU, in float32, bfloat16 and float16.
2. benchmarks/neuron.py in float32 and bfloat16 on a large current, with the share of the measured copy bandwidth that
   the kernels reach: they read and write as much as one copy (forward) and one and a half (backward).
3. benchmarks/train_step.py: ResNet-34 at 224x224, T = 4, bfloat16, channels last.

``--device cpu`` tries everything on a CPU, with Triton's interpreter and small numbers. Results: gpu.json, gpu.md, and
those of 2 and 3.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if "cpu" in sys.argv:  # read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

from lightning_tspike import kernels
from lightning_tspike.functional import ternary_lif

from . import neuron, train_step
from .measuring import RESULTS, in_turn, listing, machine, table, write


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=32, help="of the training step")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is there: --device cpu tries everything with small numbers")
    is_trial, output = options.device == "cpu", ["--output", str(options.output), "--device", options.device]
    results: dict[str, Any] = {"machine": machine(options.device), "contract": _contract(options.device)}
    print(results, flush=True)
    results["bandwidth"] = [
        _bandwidth(options.device, dtype, layout, 2**12 if is_trial else 2**28)
        for dtype in (torch.float32, torch.bfloat16)
        for layout in ("layer", "channel", "channels_last")
    ]
    markdown = listing(results["machine"])
    markdown += f"\n\n{table([results['contract']])}\n{table(results['bandwidth'])}"
    write(options.output, "gpu", results, f"# Fused neurons on a GPU\n\n{markdown}")  # before what may take long
    print(markdown, flush=True)
    sizes = ["--size", "2,4,4", "--timesteps", "1,2,4", "--batches", "2"] if is_trial else ["--size", "256,56,56"]
    for dtype in ("float32",) if is_trial else ("float32", "bfloat16"):
        neuron.main([*output, "--dtype", dtype, "--rounds", "1" if is_trial else "7", *sizes])
    step = ["--network", "resnet34", "--timesteps", "4", "--dtype", "bfloat16", "--channels-last", *output]
    trial = ["--size", "32", "--batch", "1", "--rounds", "1", "--no-compile"]
    train_step.main([*step, *(trial if is_trial else ["--size", "224", "--batch", str(options.batch)])])
    return results


def _contract(device: str) -> dict[str, Any]:
    """Largest differences between the fused neurons and the equations, over all options."""
    cases = [
        case for case in itertools.product(
            ("hard", "soft"), (False, True), ("rectangular", "triangular", "arctan"), (1, 3, 4, 16), (False, True),
            (torch.float32, torch.bfloat16, torch.float16), (device,),
        )
        if device == "cuda" or case[3] <= 3
    ]  # fmt: skip
    if device == "cuda":  # nearly all of the time goes into compiling kernels, one after the other in a process
        with ProcessPoolExecutor(min(16, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_case, cases, chunksize=4))
    else:
        found = [_case(case) for case in cases]
    return {
        "cases": len(found),
        "spikes that differ": sum(differ for differ, _ in found),
        "largest relative difference of a gradient": max(difference for _, difference in found),
    }


def _case(case: tuple[Any, ...]) -> tuple[int, float]:
    """Of one choice of options: spikes that differ, and the largest relative difference of a gradient."""
    reset, detach, surrogate, timesteps, by_channel, dtype, device = case
    torch.manual_seed(timesteps)
    x = torch.randn(timesteps * 2, 5, 7, 9, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if by_channel else x
    grad = torch.randn_like(x)
    given = {"reset": reset, "detach_reset": detach, "surrogate": surrogate}
    results = []
    amplitude = 0.8 if device == "cuda" else 0.8125  # Triton's interpreter does not round to bfloat16, it cuts
    for way in ("reference", "triton"):
        shape = (5,) if by_channel else ()
        values = [torch.full(shape, v, device=device, requires_grad=True) for v in (amplitude, 0.6)]
        current = x.detach().requires_grad_()
        with kernels.use(way):
            out = ternary_lif(current, timesteps, values[0], threshold=values[1], decay=0.3, **given)
        out.backward(grad)
        results.append((out.detach(), current.grad.float(), *(v.grad for v in values)))
    want, got = results
    spikes = int((want[0] != got[0]).sum())
    if dtype != torch.float32:  # in half precision the results are rounded to less than that
        return spikes, 0.0
    pairs = zip(got[1:], want[1:], strict=True)
    return spikes, max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _bandwidth(device: str, dtype: torch.dtype, layout: str, elements: int) -> dict[str, Any]:
    """Bytes per second of the kernels, and of a copy, on [4 * 16, 64, H, W]."""
    side = max(1, round((elements / (4 * 16 * 64)) ** 0.5))
    x = torch.randn(64, 64, side, side, device=device).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    shape = () if layout == "layer" else (64,)
    amplitude = torch.ones(shape, device=device, requires_grad=True)
    own, grad, copy = x.detach().requires_grad_(), torch.randn_like(x), torch.empty_like(x)

    def forward() -> None:
        with kernels.use("triton"), torch.no_grad():
            ternary_lif(x, 4, amplitude)

    with kernels.use("triton"):
        out = ternary_lif(own, 4, amplitude)

    def backward() -> None:
        torch.autograd.grad(out, [own, amplitude], grad, retain_graph=True)

    functions = {"copy": lambda: copy.copy_(x), "forward": forward, "backward": backward}
    times = in_turn(functions, device, rounds=2 if device == "cpu" else 21, calls=1 if device == "cpu" else 10)
    size = x.numel() * x.element_size()
    passes = {"copy": 2, "forward": 2, "backward": 3}
    rates = {name: passes[name] * size / statistics.median(times[name]) / 1e9 for name in functions}
    return {
        "current": f"{list(x.shape)} {str(dtype).removeprefix('torch.')}, {layout}",
        **{f"{name}, GB/s": rate for name, rate in rates.items()},
        "forward / copy": rates["forward"] / rates["copy"],
        "backward / copy": rates["backward"] / rates["copy"],
    }


if __name__ == "__main__":
    main()
