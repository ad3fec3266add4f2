"""What the benchmarks of speed and memory share: clocks, counts of memory, the machine, results files, plots."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_tspike.analysis import timing
from lightning_tspike.analysis.timing import in_turn, ratio
from lightning_tspike.memory.kept import kept_bytes

__all__ = [
    "RESULTS",
    "add_record",
    "command",
    "in_turn",
    "kept_bytes",
    "line",
    "listing",
    "machine",
    "plot",
    "ratio",
    "records",
    "table",
    "write",
]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "lightning", "timm", "spikingjelly", "snntorch", "norse")


def machine(device: str) -> dict[str, Any]:
    """What ran the measurements: processor or GPU, threads, versions."""
    return timing.machine(device, PACKAGES)


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The straight line through some points by least squares: slope, intercept, and R^2, 1 where it meets all."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    intercept = mean_y - slope * mean_x
    total = sum((b - mean_y) ** 2 for b in y)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return {"slope": slope, "intercept": intercept, "r2": 1 - residual / total if total else 1.0}


def command(name: str, arguments: Sequence[str] | None) -> str:
    """The command line of benchmarks/NAME.py; ``arguments`` None: those of this process."""
    return " ".join([f"python -m benchmarks.{name}", *(sys.argv[1:] if arguments is None else arguments)])


def listing(facts: Mapping[str, Any]) -> str:
    """Facts as a Markdown list."""
    return "\n".join(f"* {key}: {value}" for key, value in facts.items())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *([_text(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def write(folder: Path, name: str, results: Mapping[str, Any], markdown: str) -> None:
    """Write NAME.json and NAME.md, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(results, indent=1) + "\n"), (".md", markdown)):
        scratch = folder / f".{name}{suffix}"
        scratch.write_text(text)
        os.replace(scratch, folder / f"{name}{suffix}")


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def plot(path: Path, xlabel: str, panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> None:
    """Draw curves over one quantity, a panel for each measure, on logarithmic axes.

    Args:
        path: PNG file to write.
        xlabel: What is on the horizontal axis.
        panels: By label of the vertical axis, curves by name, each from x to y; values of 0 are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), layout="constrained", squeeze=False)
    for axis, (ylabel, curves) in zip(axes[0], panels.items(), strict=True):
        for name, points in curves.items():
            shown = {x: y for x, y in points.items() if y > 0}
            axis.plot(list(shown), list(shown.values()), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        axis.set_xticks(sorted({x for points in curves.values() for x in points}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axes[0][-1].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)
