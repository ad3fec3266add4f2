"""Every cell of the paper's Tables 1 to 5 (Guo et al., AAAI 2024), and what stands beside it here.

Accuracies in %, as printed; those of CIFAR, ImageNet and CIFAR10-DVS are of the paper's own networks at full size,
which take GPUs. What ``benchmarks.time_to_accuracy`` has trained on one, in minutes and not for the paper's epochs,
stands beside them; what was not trained here is "not run here", with the command that would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Cell", "cells"]

NOT_RUN = "not run here"
_VARIANTS = {
    "binary": "--model.neuron=binary_lif --model.amplitude=fixed",
    "ternary": "--model.amplitude=fixed",
    "trainable ternary": "--model.amplitude=layer",
}


@dataclass(frozen=True)
class Cell:
    """One figure of the paper.

    Attributes:
        table: Its number.
        row: Data, network and T.
        column: What is printed there.
        paper: As printed.
        ours: As measured here, or NOT_RUN.
        command: What trains or measures it.
    """

    table: int
    row: str
    column: str
    paper: str
    ours: str
    command: str


# (network, T): binary, ternary, trainable ternary
_TABLE_1 = {
    ("resnet18", 2): ("58.30", "65.87", "66.40"),
    ("resnet18", 4): ("61.07", "66.90", "67.68"),
    ("resnet34", 2): ("62.81", "69.48", "69.51"),
    ("resnet34", 4): ("63.82", "70.12", "70.74"),
}
# (table, data, network, T): ternary, trainable ternary
_TABLES_2_TO_4 = {
    (2, "cifar10", "resnet19", 1): ("95.28 ± 0.10", "95.58 ± 0.08"),
    (2, "cifar10", "resnet19", 2): ("95.60 ± 0.09", "95.80 ± 0.10"),
    (2, "cifar10", "resnet20", 2): ("94.29 ± 0.08", "94.48 ± 0.09"),
    (2, "cifar10", "resnet20", 4): ("94.46 ± 0.08", "94.96 ± 0.10"),
    (2, "cifar100", "resnet19", 1): ("78.13 ± 0.11", "78.45 ± 0.08"),
    (2, "cifar100", "resnet19", 2): ("79.66 ± 0.08", "80.20 ± 0.10"),
    (2, "cifar100", "resnet20", 2): ("73.00 ± 0.08", "73.41 ± 0.12"),
    (2, "cifar100", "resnet20", 4): ("73.85 ± 0.11", "74.02 ± 0.08"),
    (3, "imagenet", "resnet18", 4): ("66.90 ± 0.19", "67.68 ± 0.13"),
    (3, "imagenet", "resnet34", 4): ("70.12 ± 0.15", "70.74 ± 0.11"),
    (4, "cifar10dvs", "resnet19", 10): ("78.40 ± 0.21", "79.80 ± 0.16"),
    (4, "cifar10dvs", "resnet20", 10): ("78.70 ± 0.17", "79.80 ± 0.19"),
}


def cells(results: Path) -> Iterator[Cell]:
    """All cells in the paper's order.

    Args:
        results: Folder of benchmarks/results, for those that are measured here.
    """
    for (network, steps), printed in _TABLE_1.items():
        for column, paper in zip(_VARIANTS, printed, strict=True):
            yield _accuracy(1, "imagenet", network, steps, column, paper)
    trained = _trained(results)
    for (number, data, network, steps), printed in _TABLES_2_TO_4.items():
        for column, paper in zip(list(_VARIANTS)[1:], printed, strict=True):
            cell = _accuracy(number, data, network, steps, column, paper)
            ours = trained.get((data, network, steps, column), {})
            yield replace(cell, **ours)
    yield from _energies(results)


def _accuracy(number: int, data: str, network: str, steps: int, column: str, paper: str) -> Cell:
    command = f"tspike fit --config {network}_{data} --model.timesteps={steps} {_VARIANTS[column]} --data.root=PATH"
    return Cell(number, f"{data}, {network}, T = {steps}", column, paper, NOT_RUN, command)


def _trained(results: Path) -> dict[tuple[str, str, int, str], dict[str, str]]:
    """What was trained in minutes on a GPU: for CIFAR-10 at T = 2, by network and column."""
    found = {}
    for path in sorted(results.glob("time_to_accuracy*.json")):
        measured = json.loads(path.read_text())
        settings = measured["settings"]
        is_fixed = settings.get("amplitude", "layer") == "fixed"
        neuron = settings.get("neuron", "ternary_lif")
        if neuron != "ternary_lif" or measured["training_images"] != 50_000:
            continue
        network = settings["backbone"].removeprefix("tspike_")
        accuracy = 100 * measured["accuracy"]["folded"]
        found["cifar10", network, 2, "ternary" if is_fixed else "trainable ternary"] = {
            "ours": f"{accuracy:.2f} ({measured['epochs']} epochs, one seed)",
            "command": f"python -m benchmarks.time_to_accuracy --data FOLDER --backbone {settings['backbone']} "
            f"--epochs {measured['epochs']}",
        }
    return found


def _energies(results: Path) -> Iterator[Cell]:
    """Table 5: operations for one image of CIFAR-10 with ResNet-20, whose T the paper does not give."""
    measured = json.loads((results / "paper_energy.json").read_text())
    command = measured["command"]
    for printed in ("binary_lif", "ternary_lif"):
        ours = {row["T"]: row for row in measured["rows"] if row["neuron"] == printed}
        for column, unit in (("FLOPs", 1e6), ("SOPs", 1e6), ("signs", 1e6), ("uJ", 1.0)):
            paper = ours[2][f"{column} by the paper"] / unit
            here = ", ".join(f"{row[column] / unit:.2f} at T = {steps}" for steps, row in ours.items())
            name = f"{column}, M" if unit > 1 else column
            yield Cell(5, f"cifar10, resnet20, {printed.removesuffix('_lif')}", name, f"{paper:.2f}", here, command)
