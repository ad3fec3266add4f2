"""Claim: the amplitude folds away, and inference is that of plain ternary spikes.

What every run's fold did: accuracy before and after, decisions, logits, and the share of multiply-accumulates that are
additions only. In float32 a membrane potential at its threshold may be rounded to the other side, so that a few
decisions can differ; in float64 the fold verifies equality.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from ..fold_speed import fold_table
from ..measuring import table
from ..training_runs import FitRun
from . import accuracy
from .comparing import Lines

TITLE = "The fold: the same outputs without amplitudes"
DATASETS = accuracy.DATASETS


def runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """Those of the claim about accuracy; the page has all that there are."""
    return accuracy.runs(dataset, epochs, data)


def section(lines: Lines) -> list[str]:
    """What the runs say."""
    rows = []
    for dataset, of_dataset in lines.items():
        folds = [(line, line["fold"]) for line in of_dataset if line["neurons"]]
        if not folds:
            continue
        change = max(abs(line["accuracy"] - fold["unfolded_accuracy"]) for line, fold in folds)
        addition_only = [fold["addition_only_macs"] for _, fold in folds]
        rows.append(
            {
                "data": dataset,
                "networks": len(folds),
                "amplitudes kept": sum(len(fold["kept"]) for _, fold in folds),
                "largest change of accuracy, points": f"{100 * change:.2f}",
                "decisions that differ, most": max(fold["decisions_that_differ"] for _, fold in folds),
                "mean": f"{statistics.fmean(fold['decisions_that_differ'] for _, fold in folds):.1f}",
                "largest deviation of a logit, float32": f"{max(fold['deviation'] for _, fold in folds):.1e}",
                "addition-only MACs": f"{min(addition_only):.2f} to {max(addition_only):.2f}",
            }
        )
    if not rows:
        return []
    return [
        "All networks of this page, on all test images; the deviation is that of the logits of 1,000 of them, relative "
        "to the largest. The share of MACs was counted on 32x32 pixels, the network's own size; what is run again "
        "counts on the data's own, which is another for Fashion-MNIST (28x28) and N-MNIST (34x34).",
        "",
        table(rows),
    ]


def speed(results: Path) -> list[str]:
    """Time and size before and after, where they were measured."""
    if not (file := results / "fold_speed.json").exists():
        return []
    measured = json.loads(file.read_text())
    machine = measured["machine"]
    return [
        "",
        f"Time and size before and after (`{measured['command']}`; {machine['processor']}, "
        f"{machine['threads']} threads): the fold itself changes little, what it makes possible does. "
        "All runtimes are compared in [speed.md](speed.md#inference).",
        "",
        fold_table(measured["networks"]),
    ]
