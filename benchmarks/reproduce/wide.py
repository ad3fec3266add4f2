"""Claim: what holds in a narrow network holds in the one that the shipped entry has, with as many epochs as it had.

    python -m benchmarks.reproduce wide cifar10 --epochs 40 --data.root=FOLDER

Days on a CPU, minutes on a GPU: ``--jobs`` trainings share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ..measuring import table
from ..narrow_runs import KINDS, SEEDS, narrow_run
from ..training_runs import FitRun
from .accuracy import PAIRS, SPIKING, TIMELESS
from .comparing import Lines, chosen, comparison_table, percent, values

TITLE = "The same at full width"
DATASETS = {"cifar10": (2,)}
CHANGE = "wide"


def runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """The kinds of neurons of the claim about accuracy."""
    return [
        narrow_run(dataset, kind, seed, data, change=CHANGE, epochs=epochs)
        for seed, kind in product(SEEDS, (*SPIKING, *TIMELESS))
    ]


def section(lines: Lines) -> list[str]:
    """What the runs say."""
    of_kind = {
        kind: chosen(lines["cifar10"], kind=kind, timesteps=KINDS[kind].get("timesteps", 2), change=CHANGE)
        for kind in (*SPIKING, *TIMELESS)
    }
    found = {kind: values(same) for kind, same in of_kind.items() if same}
    if not found:
        return []
    epochs = sorted({line["epochs"] for same in of_kind.values() for line in same})
    pairs = [
        ({"first": first, "second": second}, found[first], found[second])
        for first, second in PAIRS
        if first in found and second in found
    ]
    text = [
        f"CIFAR-10, `tspike_fast_resnet`, T = 2, {'/'.join(map(str, epochs))} epochs; accuracy in %.",
        "",
        table([{"": "accuracy", **{kind: percent(by_seed) for kind, by_seed in found.items()}}]),
    ]
    return [*text, table(comparison_table(pairs))] if pairs else text
