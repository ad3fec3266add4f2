"""One layer of neurons: time and memory, side by side with other libraries, in one run.

    python -m benchmarks.neuron [--device cpu] [--dtype float32] [--rounds 11] [--size 64,32,32] [--output FOLDER]

A current [T, B, C, H, W] goes through the layers of benchmarks/rivals.py and through this package's, in turn:

* forward, under no_grad;
* forward and backward, with a given gradient;
* bytes kept for the backward pass, for each element of the current: beside the current and the spikes, which are the
  next layer's.

Times are medians in milliseconds, and multiples of one copy of the current into memory that is there already. T = 1, 2,
4, 8, 16 at batch 16, and batch 1, 4, 16, 64 at T = 4. Results: neuron_DEVICE_DTYPE.json and .md, and plots.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tspike import kernels
from lightning_tspike.functional import ternary_lif

from . import rivals
from .measuring import RESULTS, command, in_turn, kept_bytes, line, listing, machine, plot, ratio, table, write

Layer = Callable[[Tensor], Tensor]
RIVAL = "SpikingJelly TernaryLIFNode"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neuron")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--size", default="64,32,32", help="C,H,W")
    parser.add_argument("--timesteps", default="1,2,4,8,16")
    parser.add_argument("--batches", default="1,4,16,64")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    timesteps, batches, size = (
        [int(v) for v in text.split(",")] for text in (options.timesteps, options.batches, options.size)
    )
    main_batch = 16 if 16 in batches else batches[-1]
    cases = [(t, main_batch) for t in timesteps] + [(4, b) for b in batches if b != main_batch]
    rows: list[dict[str, Any]] = []
    for t, b in cases:
        rows += _measure(t, b, size, options)
        print(table([row for row in rows if (row["T"], row["B"]) == (t, b)]), flush=True)
    name = f"neuron_{options.device}_{options.dtype}"
    lines = _lines(rows, main_batch)
    results = {
        "command": command("neuron", arguments),
        "machine": machine(options.device),
        "missing libraries": rivals.missing(),
        "rows": rows,
        "lines over T": lines,
    }
    write(options.output, name, results, _markdown(results, rows, lines, main_batch))
    _plot(options.output / f"{name}.png", [row for row in rows if row["B"] == main_batch])
    return results


def _layers(timesteps: int, device: str) -> dict[str, Layer]:
    amplitude = torch.tensor(1.0, device=device, requires_grad=True)

    def ours(way: str) -> Layer:
        def run(x: Tensor) -> Tensor:
            with kernels.use(way):
                return ternary_lif(x.flatten(0, 1), timesteps, amplitude).view_as(x)

        return run

    fused = "triton" if device == "cuda" else "native"
    return {"ternary_lif": ours(fused), "ternary_lif, no compiler": ours("loops"), **rivals.neurons(timesteps)}


def _measure(timesteps: int, batch: int, size: Sequence[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    device = options.device
    x = torch.randn(timesteps, batch, *size, device=device, dtype=getattr(torch, options.dtype))
    grad, copy = torch.randn_like(x), torch.empty_like(x)
    layers = _layers(timesteps, device)

    @torch.no_grad()
    def forward(layer: Layer) -> Tensor:
        return layer(x)

    def both(layer: Layer) -> None:
        layer(x.detach().requires_grad_()).backward(grad)

    functions: dict[str, Callable[[], Any]] = {"copy": lambda: copy.copy_(x)}
    for name, layer in layers.items():
        functions[f"{name}|forward"] = lambda layer=layer: forward(layer)
        functions[f"{name}|both"] = lambda layer=layer: both(layer)
    times = in_turn(functions, device, rounds=options.rounds, calls=3)
    own = x.detach().requires_grad_()
    rows = []
    for name, layer in layers.items():
        kept = kept_bytes(lambda layer=layer: layer(own), device) - x.numel() * x.element_size()
        row: dict[str, Any] = {"layer": name, "T": timesteps, "B": batch}
        for what, key in (("forward", "forward"), ("forward+backward", "both")):
            measured = times[f"{name}|{key}"]
            row[f"{what} ms"] = statistics.median(measured) * 1e3
            row[f"{what} / copy"] = ratio(measured, times["copy"])
            if f"{RIVAL}|{key}" in times:
                row[f"{RIVAL} / this, {what}"] = ratio(times[f"{RIVAL}|{key}"], measured)
        row["kept, bytes per element"] = round(kept / x.numel(), 3)
        rows.append(row)
    return rows


def _lines(rows: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Straight lines over T at one batch, by layer."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == name and row["B"] == batch]
        if len(own) > 2:
            steps = [row["T"] for row in own]
            found[name] = {
                "forward+backward ms": line(steps, [row["forward+backward ms"] for row in own]),
                "kept bytes per element and T": line(steps, [row["kept, bytes per element"] * row["T"] for row in own]),
            }
    return found


def _markdown(results: dict[str, Any], rows: list[dict[str, Any]], lines: dict[str, Any], batch: int) -> str:
    parts = [f"# One layer of neurons\n\n`{results['command']}`\n"]
    parts.append(listing(results["machine"]) + "\n")
    if results["missing libraries"]:
        parts.append(f"Not installed, so not measured: {', '.join(results['missing libraries'])}.\n")
    for t, b in dict.fromkeys((row["T"], row["B"]) for row in rows):
        own = [{k: v for k, v in row.items() if k not in "TB"} for row in rows if (row["T"], row["B"]) == (t, b)]
        parts.append(f"## T = {t}, batch {b}\n\n{table(own)}")
    if lines:
        slopes = [
            {
                "layer": name,
                "ms for each time step": found["forward+backward ms"]["slope"],
                "R^2": found["forward+backward ms"]["r2"],
                "kept bytes, an element and time step": found["kept bytes per element and T"]["slope"],
            }
            for name, found in lines.items()
        ]
        parts.append(f"## Forward and backward over T, batch {batch}: straight lines\n\n{table(slopes)}")
    return "\n".join(parts)


def _plot(path: Path, rows: list[dict[str, Any]]) -> None:
    panels: dict[str, dict[str, dict[float, float]]] = {"forward + backward, ms": {}, "kept bytes, all time steps": {}}
    for row in rows:
        panels["forward + backward, ms"].setdefault(row["layer"], {})[row["T"]] = row["forward+backward ms"]
        kept = row["kept, bytes per element"] * row["T"]
        panels["kept bytes, all time steps"].setdefault(row["layer"], {})[row["T"]] = kept
    plot(path, "time steps T", panels)


if __name__ == "__main__":
    main()
