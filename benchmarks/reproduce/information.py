"""Claim: a map of ternary spikes holds more information than one of binary spikes (Proposition 1 of the paper).

The entropy of a spike, by the measured frequencies of -1, 0 and +1 in a layer: at most log2(3) = 1.585 bits, 1 bit of
binary spikes. A map of N spikes holds N times that at most.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..measuring import table
from ..training_runs import FitRun
from . import accuracy
from .comparing import Lines, chosen

TITLE = "Information: the entropy of spikes"
DATASETS = accuracy.DATASETS
STEPS = {"cifar10": 2, "fashion_mnist": 2, "nmnist": 4}
KINDS = ("binary, fixed", "ternary, fixed", "ternary, channel")


def runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """Those of the claim about accuracy."""
    return [run for run in accuracy.runs(dataset, epochs, data) if run.facts["kind"] in KINDS]


def section(lines: Lines) -> list[str]:
    """What the runs say."""
    text = []
    for dataset, steps in STEPS.items():
        of_kind = {kind: chosen(lines[dataset], kind=kind, timesteps=steps) for kind in KINDS}
        if not all(of_kind.values()):
            continue
        rows = []
        for layer in of_kind[KINDS[0]][0]["neurons"]:
            row: dict[str, str] = {"layer": f"`{layer}`"}
            for kind, same in of_kind.items():
                mean = statistics.fmean(line["neurons"][layer]["entropy"] for line in same)
                row[f"{kind}, bits"] = f"{mean:.3f}"
            signs = [line["neurons"][layer] for line in of_kind["ternary, channel"]]
            row["+1 / -1, ternary channel"] = " / ".join(
                f"{statistics.fmean(sign[key] for sign in signs):.3f}" for key in ("positive", "negative")
            )
            rows.append(row)
        text += [f"### {dataset}, T = {steps}", "", table(rows)]
    if text:
        bounds = f"Means over seeds. The bound is 1 bit for binary spikes and log2(3) = {math.log2(3):.3f} for ternary."
        text = [bounds, "", *text]
    return text
