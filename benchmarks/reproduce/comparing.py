"""Runs compared seed by seed: means, deviations and paired tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from scipy.stats import ttest_rel

__all__ = [
    "HOLDS",
    "REVERSED",
    "SAME",
    "BySeed",
    "Comparison",
    "Line",
    "Lines",
    "chosen",
    "compare",
    "comparison_table",
    "percent",
    "values",
]

Line: TypeAlias = Mapping[str, Any]
"""What is recorded of a run, see training_runs.py."""
Lines: TypeAlias = Mapping[str, Sequence[Line]]
"""The lines of each dataset."""
BySeed: TypeAlias = Mapping[int, float]

SIGNIFICANT = 0.05
HOLDS, SAME, REVERSED = "holds", "not told apart", "the other way round"


def chosen(lines: Iterable[Line], **facts: Any) -> list[Line]:
    """The lines of the longest runs with these facts; without a target and a change where none are asked for."""
    facts = {"target": None, "change": None, **facts}
    found = [line for line in lines if all(line.get(name) == value for name, value in facts.items())]
    epochs = max((line["epochs"] for line in found), default=0)
    return [line for line in found if line["epochs"] == epochs]


def values(lines: Iterable[Line]) -> dict[int, float]:
    """The accuracy of each run by its seed."""
    return {line["seed"]: line["accuracy"] for line in lines}


def percent(by_seed: BySeed) -> str:
    """``88.12 ± 0.20 (3)``: mean, standard deviation, number of seeds; empty without any."""
    if not by_seed:
        return ""
    numbers = [100 * value for value in by_seed.values()]
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.2f}{spread} ({len(numbers)})"


@dataclass(frozen=True)
class Comparison:
    """One setting less another, over the seeds that both have.

    Attributes:
        seeds: How many.
        difference: Its mean.
        spread: Its standard deviation; NaN of one seed.
        p: Of the two-sided paired t-test; NaN of one seed.
    """

    seeds: int
    difference: float
    spread: float
    p: float

    @property
    def verdict(self) -> str:
        """What it says of "the second is better than the first"."""
        if not self.seeds:
            return "not run"
        if math.isnan(self.p):
            return "one seed: no test"
        if self.p >= SIGNIFICANT:
            return SAME
        return HOLDS if self.difference > 0 else REVERSED


def compare(first: BySeed, second: BySeed) -> Comparison:
    """The second less the first."""
    seeds = sorted(first.keys() & second.keys())
    differences = [second[seed] - first[seed] for seed in seeds]
    if not seeds:
        return Comparison(0, math.nan, math.nan, math.nan)
    mean = statistics.fmean(differences)
    if len(seeds) < 2:
        return Comparison(1, mean, math.nan, math.nan)
    spread = statistics.stdev(differences)
    if not spread:  # the same difference with every seed; a test divides by 0
        return Comparison(len(seeds), mean, 0.0, 1.0 if mean == 0 else 0.0)
    p = float(ttest_rel([second[seed] for seed in seeds], [first[seed] for seed in seeds]).pvalue)
    return Comparison(len(seeds), mean, spread, p)


def comparison_table(pairs: Iterable[tuple[Mapping[str, Any], BySeed, BySeed]]) -> list[dict[str, Any]]:
    """Rows for pairs of settings: what stands in front, the difference in points, p, and the verdict."""
    rows = []
    for front, first, second in pairs:
        found = compare(first, second)
        spread = "" if math.isnan(found.spread) else f" ± {100 * found.spread:.2f}"
        rows.append(
            {
                **front,
                "difference, points": f"{100 * found.difference:+.2f}{spread} ({found.seeds})" if found.seeds else "",
                "p": "" if math.isnan(found.p) else f"{found.p:.3f}",
                "verdict": found.verdict,
            }
        )
    return rows
