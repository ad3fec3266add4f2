"""docs/results.md and results.csv, written from the runs' lines: the page has no number of its own."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..measuring import records, table
from ..narrow_runs import BACKBONE, RECIPE, results_file
from . import accuracy, amplitudes, beyond, energy, folding, information, wide
from .paper_tables import Cell, cells

__all__ = ["CLAIMS", "write_page"]

CLAIMS: dict[str, Any] = {
    "accuracy": accuracy,
    "wide": wide,
    "information": information,
    "amplitudes": amplitudes,
    "folding": folding,
    "energy": energy,
    "beyond": beyond,
}
DATASETS = ("cifar10", "fashion_mnist", "nmnist")


def write_page(results: Path, page: Path) -> None:
    """Write the page, its picture and the table of the paper's cells beside it."""
    lines = {name: records(results_file(results, name)) for name in DATASETS}
    narrow = {
        name: [line for line in of_dataset if line["change"] != wide.CHANGE] for name, of_dataset in lines.items()
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    text = [
        "# Results",
        "",
        "The claims of the ternary spike (Guo et al., AAAI 2024, "
        "[arXiv 2312.06372](https://arxiv.org/abs/2312.06372)), tested on real data by commands of this repository. "
        "Written by `python -m benchmarks.reproduce page` from `benchmarks/results/narrow_runs_*.jsonl`, where every "
        "training has its command; `python -m benchmarks.reproduce CLAIM DATASET --data.root=PATH` trains what is "
        "missing.",
        "",
        "Trainings are short and networks narrow, so that all of this can be run again on two CPU cores: "
        f"`{BACKBONE}` by the recipe `{RECIPE}` with {_epochs(narrow)} epochs; N-MNIST (its first 1,000 training and "
        "100 test recordings) by the recipe `nmnist`. They compare; they are not records. What has no figure yet is "
        "not here.",
    ]
    if any(narrow.values()):
        text += ["", table([_cost(name, of_dataset) for name, of_dataset in narrow.items() if of_dataset])]
    for name, claim in CLAIMS.items():
        if section := claim.section(lines):
            text += ["", f"## {claim.TITLE}", "", f"`{name}`", "", *section]
        if name == "folding":
            text += folding.speed(results)
        if name == "amplitudes" and amplitudes.plot(lines, page.with_name("results_membranes.png")):
            text += ["![Membrane potentials by layer](results_membranes.png)"]
    every = list(cells(results))
    text += [
        "",
        "## The paper's tables",
        "",
        "Every cell of its Tables 1 to 5; [results.csv](results.csv) has the same with the command of each.",
        "",
        table([{name: value for name, value in asdict(cell).items() if name != "command"} for cell in every]),
    ]
    page.write_text("\n".join(text).rstrip().replace("\n\n\n", "\n\n") + "\n")
    page.with_suffix(".csv").write_text(_csv(every))


def _cost(dataset: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How long the trainings of a dataset took."""
    minutes = [line["training_seconds"] / 60 for line in lines]
    mean, total = statistics.fmean(minutes), sum(minutes) / 60
    return {
        "data": dataset,
        "trainings": len(lines),
        "minutes each, one thread": f"{mean:.1f}",
        "hours in all, one thread": f"{total:.1f}",
    }


def _epochs(lines: dict[str, list[dict[str, Any]]]) -> str:
    found = sorted({line["epochs"] for name in ("cifar10", "fashion_mnist") for line in lines[name]})
    return "/".join(map(str, found)) or "few"


def _csv(every: list[Cell]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in every)
    return file.getvalue()
