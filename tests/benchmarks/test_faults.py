"""Runs that are struck, and strategies beside one process: the benchmarks behind docs/reliability.md and scaling.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import faults, strategies

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "results"), [("scaling", "strategies"), ("scaling", "scaling"), ("reliability", "faults")]
)
def test_pages_have_the_tables_of_the_results(page: str, results: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = (ROOT / "benchmarks" / "results" / f"{results}.md").read_text().split("\n\n")
    tables = [block.strip() for block in blocks if block.startswith("|")]
    assert tables
    for table in tables:
        assert table in text, f"the page has another table than {results}.md"


def test_cases() -> None:
    """As many as are promised, at moments of their own."""
    cases = faults.all_cases(0)
    assert [sum(case.fault == fault for case in cases) for fault in ("kill -9", "SIGTERM", "full disk")] == [40, 20, 10]
    assert len({case.moment for case in cases}) == len(cases)


@pytest.mark.slow
def test_struck_runs_go_on(tmp_path: Path) -> None:
    undisturbed = faults.Undisturbed(tmp_path, processes=[1])
    for i, case in enumerate(
        [
            faults.Case("kill -9", "fit", 1, 0.6),
            faults.Case("kill -9", "publish", 1, 0.5),
            faults.Case("SIGTERM", "fit", 1, 0.4),
        ]
    ):
        outcome = faults.strike(case, undisturbed, tmp_path / f"case{i}")
        assert (outcome.orphans, outcome.broken, outcome.leftovers, outcome.is_same) == (0, (), (), True), outcome
        assert outcome.seconds < faults.LIMIT


@pytest.mark.slow
def test_strategies(tmp_path: Path) -> None:
    """The row of FSDP2 that gathers its checkpoints is that of the committed table."""
    strategies.main(["--only", "FSDP2, full", "--output", str(tmp_path)])
    (row,) = json.loads((tmp_path / "strategies.json").read_text())["rows"]
    committed = json.loads((ROOT / "benchmarks/results/strategies.json").read_text())["rows"]
    assert row in committed
    assert list(row.values()).count("equal") == 5
