"""The benchmarks of early exit and streaming run, on little, and write what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import early_exit
from lightning_tspike import zoo

pytestmark = pytest.mark.slow


def test_early_exit(tmp_path: Path) -> None:
    early_exit.main(["--output", str(tmp_path)])  # the digits alone
    (entry,) = json.loads((tmp_path / "early_exit.json").read_text())["entries"]
    assert entry["entry"] == "tspike-digits"
    assert abs(entry["fixed T"]["4"] - 0.9889) < 0.004
    assert set(entry["fixed T"]) == set("12345678")
    levels = entry["early exit, at most 4"]
    assert [row["mean T"] for row in levels] == sorted(row["mean T"] for row in levels)
    assert levels[0]["mean T"] < 1.1 < levels[-1]["mean T"] <= 4
    assert entry["classify"]["decides as computed"] > 0.99
    assert all(0.98 < area < 1 for area in entry["mean accuracy over mean T, at most 4"].values())
    assert "| tspike-digits |" in (tmp_path / "early_exit.md").read_text()
    assert (tmp_path / "early_exit.png").stat().st_size > 1000


def test_streaming(tmp_path: Path) -> None:
    options = ["--entry", "tspike-digits", "--frames", "200", "--rounds", "2", "--no-compile"]
    # a process of its own, as for a user: it counts all tensors there are, also what torch.compile left in this one
    command = [sys.executable, "-m", "benchmarks.streaming", *options, "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "streaming.json").read_text())
    assert results["memory"][0]["frames"] == 100
    assert results["memory"][-1]["frames"] == 200
    assert len({(row["tensors"], row["their bytes"]) for row in results["memory"]}) == 1
    assert [row["way"] for row in results["a frame"]] == ["T frames at once", "stream"]
    assert len(results["spikes"]) == 2 * len(zoo.list(status="trained"))
    assert all(row["that differ"] / row["spikes"] < 1e-4 for row in results["spikes"])
