"""Beyond the paper: what else helps, on the same footing.

Temporal efficient training, distillation, mixed images, a start from the ANN's weights, and several levels: each alone,
added to the same recipe, against it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..measuring import table
from ..narrow_runs import SEEDS, narrow_run
from ..training_runs import FitRun
from .comparing import Lines, chosen, comparison_table, percent, values

TITLE = "Beyond the paper: what helps"
DATASETS = {"cifar10": (2,)}
BASE = "ternary, channel"
CHANGES = ("TET", "mixup and cutmix", "teacher", "teacher per step", "from the ANN")
LEVELS = "ternary, 2 levels"


def runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """The recipe as it is, and each change of it."""
    found = []
    for seed in SEEDS:
        found += [narrow_run(dataset, kind, seed, data, epochs=epochs) for kind in (BASE, LEVELS)]
        found += [narrow_run(dataset, BASE, seed, data, change=change, epochs=epochs) for change in CHANGES]
    return found


def section(lines: Lines) -> list[str]:
    """What the runs say."""
    base = values(chosen(lines["cifar10"], kind=BASE, timesteps=2))
    changed = {change: values(chosen(lines["cifar10"], kind=BASE, timesteps=2, change=change)) for change in CHANGES}
    changed["2 levels, no leak, soft reset"] = values(chosen(lines["cifar10"], kind=LEVELS, timesteps=2))
    pairs = [
        ({"change": change, "accuracy, %": percent(by_seed)}, base, by_seed)
        for change, by_seed in changed.items()
        if by_seed
    ]
    if not pairs or not base:
        return []
    return [
        f"CIFAR-10, T = 2, {BASE} as it is: {percent(base)} %. Each change alone; is it better?",
        "",
        table(comparison_table(pairs)),
    ]
