"""Claim: ternary spikes cost little more energy than binary ones.

By both accountings (lightning_tspike/analysis/accounting.py): the usual one, 4.6 pJ a multiply-accumulate and 0.9 pJ a
synaptic operation, and the paper's, in which the real-valued first layer dominates.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lightning_tspike.analysis.accounting import ACCOUNTINGS

from ..measuring import table
from ..narrow_runs import SEEDS, narrow_run
from ..training_runs import FitRun
from .comparing import Line, Lines, chosen, percent, values

TITLE = "Energy: what ternary spikes cost"
DATASETS = {"cifar10": (2,), "fashion_mnist": (2,)}
SETTINGS = (
    ("binary, fixed", None),
    ("binary", None),
    ("ternary, fixed", None),
    ("ternary, channel", None),
    ("binary", 0.3),
    ("ternary, channel", 0.3),
    ("ANN", None),
)


def runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """Binary and ternary, with and without a cost of synaptic operations."""
    return [
        narrow_run(dataset, kind, seed, data, target=target, epochs=epochs)
        for seed in SEEDS
        for kind, target in SETTINGS
    ]


def section(lines: Lines) -> list[str]:
    """What the runs say."""
    rows = []
    for dataset in DATASETS:
        base: float | None = None
        for kind, target in SETTINGS:
            steps = 1 if kind == "ANN" else 2
            same = chosen(lines[dataset], kind=kind, target=target, timesteps=steps)
            if not same:
                continue
            synops = statistics.fmean(line["synops"] for line in same)
            base = synops if (kind, target) == SETTINGS[0] else base
            rows.append(
                {
                    "data": dataset,
                    "neuron": kind,
                    "target": "" if target is None else f"{target:g}",
                    "accuracy, %": percent(values(same)),
                    "M synaptic operations": f"{synops / 1e6:.2f}" if synops else "",
                    "relative to binary": f"{synops / base:.2f}" if base and synops else "",
                    "M MACs": f"{statistics.fmean(line['macs'] for line in same) / 1e6:.2f}",
                    **{f"uJ, {name}": f"{_microjoules(same, name):.1f}" for name in ACCOUNTINGS},
                }
            )
    return [table(rows)] if rows else []


def _microjoules(lines: Sequence[Line], accounting: str) -> float:
    cost = ACCOUNTINGS[accounting]
    return statistics.fmean(cost.picojoules(line["macs"], line["synops"], line["signs"]) / 1e6 for line in lines)
