"""The law of activation memory: what a training step keeps, over T, batch and depth.

    python -m benchmarks.memory [--size 64] [--output FOLDER]

Bytes that the forward pass leaves for the backward pass, of timm's ResNets with this package's neurons on the CPU:
``eager`` (neurons as published training code has them), ``full``, ``packed`` and ``lean`` (``memory=``). What counts
is what is allocated, so a run on any machine gives the same. T = 1, 2, 4, 8 at batch 4; batch 1, 2, 4, 8 at T = 4;
resnet18, 34, 50, 101 at T = 4, batch 4. Straight lines over T, batch and the number of neurons (of all layers, at one
time step, for one image) say how it grows. Results: memory.json and .md, and a plot.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_tspike._observe import observing
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork

from . import rivals
from .measuring import RESULTS, command, kept_bytes, line, machine, plot, table, write

MODES = ("eager", "full", "packed", "lean")
SWEEPS: dict[str, list[tuple[str, int, int]]] = {  # network, T, batch
    "T": [("resnet18", t, 4) for t in (1, 2, 4, 8)],
    "batch": [("resnet18", 4, b) for b in (1, 2, 4, 8)],
    "depth": [(name, 4, 4) for name in ("resnet18", "resnet34", "resnet50", "resnet101")],
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for case in dict.fromkeys(case for cases in SWEEPS.values() for case in cases):
        rows[case] = _measure(*case, options.size)
        print(rows[case], flush=True)
    laws = []
    for sweep, cases in SWEEPS.items():
        across = {"T": "T", "batch": "batch", "depth": "neurons"}[sweep]
        for mode in MODES:
            fit = line([rows[case][across] for case in cases], [rows[case][f"{mode}, MiB"] for case in cases])
            laws.append({"over": across, "memory": mode, "MiB for each": fit["slope"], "R^2": fit["r2"]})
    results = {
        "command": command("memory", arguments),
        "machine": machine("cpu"),
        "image": [3, options.size, options.size],
        "rows": list(rows.values()),
        "lines": laws,
    }
    markdown = (
        f"# Memory kept for the backward pass\n\n`{results['command']}`, images of {options.size}x{options.size}, "
        f"float32\n\n{table(list(rows.values()))}\n## Straight lines\n\n{table(laws)}"
    )
    write(options.output, "memory", results, markdown)
    curves = {f"{over}, MiB": (over, SWEEPS[over]) for over in ("T", "batch")}
    plot(
        options.output / "memory.png",
        "time steps T (left), batch (right)",
        {
            label: {mode: {rows[c][over]: rows[c][f"{mode}, MiB"] for c in cases} for mode in MODES}
            for label, (over, cases) in curves.items()
        },
    )
    return results


def _measure(backbone: str, timesteps: int, batch: int, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    base = create_network(NetworkConfig(backbone, num_classes=1000, timesteps=timesteps))
    x = torch.randn(batch, 3, size, size)
    row: dict[str, Any] = {"network": backbone, "T": timesteps, "batch": batch, "neurons": _count_neurons(base, x[:1])}
    for mode in MODES:
        network = copy.deepcopy(base)
        if mode == "eager":
            rivals.use_eager_neurons(network)
        else:
            network.memory = mode  # type: ignore[assignment]
        network(x).sum().backward()  # what is made once is there
        network.zero_grad()
        row[f"{mode}, MiB"] = kept_bytes(lambda network=network: network(x).sum(), "cpu") / 2**20
    for mode in MODES[1:]:
        row[f"{mode} / eager"] = row[f"{mode}, MiB"] / row["eager, MiB"]
    return row


def _count_neurons(network: SpikingNetwork, image: torch.Tensor) -> int:
    """Neurons of all layers."""
    counts: list[int] = []
    with torch.no_grad(), observing(network.neurons(), lambda _n, neuron, _x, y: counts.append(y.numel())):
        network(image)
    return sum(counts) // network.timesteps


if __name__ == "__main__":
    main()
