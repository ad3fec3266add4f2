"""Claim: binary < ternary < ternary with a learned amplitude, in accuracy; beside them the quantised ANN and the ANN.

The same network, recipe and T for all, three seeds. The paper has these side by side on ImageNet alone (its Table 1);
of CIFAR-10 it prints no binary row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from ..measuring import table
from ..narrow_runs import KINDS, SEEDS, event_run, narrow_run
from ..training_runs import FitRun
from .comparing import HOLDS, REVERSED, SAME, Lines, chosen, comparison_table, percent, values

TITLE = "Accuracy: binary, ternary, ternary with a learned amplitude"
DATASETS = {"cifar10": (1, 2, 4), "fashion_mnist": (2,), "nmnist": (4,)}  # at which T
SPIKING = ("binary, fixed", "ternary, fixed", "ternary, layer", "ternary, channel")
TIMELESS = ("quantised ANN", "ANN")
PAIRS = (
    ("binary, fixed", "ternary, fixed"),
    ("ternary, fixed", "ternary, layer"),
    ("ternary, fixed", "ternary, channel"),
    ("quantised ANN", "ternary, channel"),
    ("ternary, channel", "ANN"),
)


def runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """All trainings of a dataset."""
    if dataset == "nmnist":  # frames of events have T steps whatever the neuron
        return [event_run(kind, seed, data) for seed, kind in product(SEEDS, (*SPIKING, *TIMELESS))]
    found = []
    for seed in SEEDS:
        for steps, kind in product(DATASETS[dataset], SPIKING):
            found.append(narrow_run(dataset, kind, seed, data, epochs=epochs, timesteps=steps))
        found += [narrow_run(dataset, kind, seed, data, epochs=epochs) for kind in TIMELESS]
    return found


def section(lines: Lines) -> list[str]:
    """What the runs say."""
    settings, pairs = [], []
    for dataset, all_steps in DATASETS.items():
        for steps in all_steps:
            found = {kind: values(chosen(lines[dataset], kind=kind, timesteps=steps)) for kind in SPIKING}
            for kind in TIMELESS:
                own = steps if dataset == "nmnist" else KINDS[kind]["timesteps"]
                found[kind] = values(chosen(lines[dataset], kind=kind, timesteps=own))
            if not any(found[kind] for kind in SPIKING):
                continue
            front = {"data": dataset, "T": steps}
            settings.append({**front, **{kind: percent(by_seed) for kind, by_seed in found.items()}})
            pairs += [
                ({**front, "first": first, "second": second}, found[first], found[second])
                for first, second in PAIRS
                if found[first] and found[second]
            ]
    if not settings:
        return []
    compared = comparison_table(pairs)
    return [
        "In short: in how many settings, of data and T, each claim holds.",
        "",
        table(_in_short(compared)),
        "Test accuracy in %, last epoch, folded: mean ± standard deviation (seeds). ANNs have no time steps; of "
        "N-MNIST they see the same T frames, one by one, and their logits are averaged.",
        "",
        table(settings),
        "Is the second better than the first? Differences with the same seed, paired t-test.",
        "",
        table(compared),
    ]


def _in_short(compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often the second of a pair is better than the first, by verdict."""
    rows = []
    for first, second in PAIRS:
        verdicts = Counter(row["verdict"] for row in compared if (row["first"], row["second"]) == (first, second))
        if verdicts:
            counted = {verdict: verdicts[verdict] for verdict in (HOLDS, SAME, REVERSED)}
            rows.append({"claim": f"{second} better than {first}", "settings": verdicts.total(), **counted})
    return rows
