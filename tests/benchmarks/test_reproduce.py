"""The paper's claims: pages say what the runs' lines say, comparisons are right, and every kind of run trains."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fast_runs, frontier, measuring
from benchmarks.narrow_runs import CHANGES, event_run, narrow_run, results_file
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.comparing import chosen, compare, comparison_table, percent, values
from benchmarks.reproduce.page import CLAIMS, write_page
from benchmarks.run_options import with_option
from benchmarks.training_runs import train_all
from lightning_tspike import zoo
from lightning_tspike.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def line(kind: str, seed: int, accuracy: float, timesteps: int = 2, **facts: Any) -> dict[str, Any]:
    spikes = {"positive": 0.2, "negative": 0.3, "entropy": 1.485, "unsigned_entropy": 1.0}
    neuron = {**spikes, "amplitude": [0.8, 1.1 + seed / 10, 1.5], "effect": "live"}
    membrane = {"mean": 0.25, "std": 1.5, "histogram": [1 / 64] * 64}
    fold = {"unfolded_accuracy": accuracy + 1e-4, "decisions_that_differ": seed, "deviation": 2e-6}
    return {
        "name": f"{kind}{timesteps}{seed}{facts}", "dataset": "cifar10", "kind": kind, "timesteps": timesteps,
        "target": None, "change": None, "seed": seed, "epochs": 6, "accuracy": accuracy,
        "training_seconds": 120.0,
        "synops": 0.0 if kind == "ANN" else 8e6, "macs": 2e6, "ann_macs": 8e6, "share": 0.5, "signs": 1e5,
        "microjoules": 1.0, "neurons": {} if kind == "ANN" else {"act": neuron | {"membrane": membrane}},
        "fold": {**fold, "addition_only_macs": 0.75, "kept": []}, **facts,
    }  # fmt: skip


LINES = [
    *(line("binary, fixed", seed, 0.70 + seed / 100) for seed in range(3)),
    *(line("ternary, fixed", seed, 0.75 + seed / 90) for seed in range(3)),
    *(line("ternary, layer", seed, 0.75 + (-1) ** seed / 100) for seed in range(3)),
    *(line("ternary, channel", seed, 0.74 + seed / 100) for seed in range(3)),
    line("ANN", 0, 0.85, timesteps=1),
    line("ternary, channel", 0, 0.745, change="TET"),
    line("ternary, layer", 0, 0.7, change="norm-free"),
    line("ternary, fixed", 0, 0.69, change="norm-free"),
    line("binary, fixed", 0, 0.88, change="wide"),
    line("ternary, fixed", 0, 0.91, change="wide"),
]


@pytest.mark.parametrize(("name", "write"), [("results", write_page), ("frontier", frontier.write_page)])
def test_pages_are_those_of_the_committed_runs(tmp_path: Path, name: str, write: Any) -> None:
    page = ROOT / "docs" / f"{name}.md"
    if not page.exists():
        pytest.skip(f"{page.name} has not been written yet")
    write(ROOT / "benchmarks" / "results", tmp_path / page.name)
    for written in tmp_path.glob(f"{name}.*"):
        if written.suffix != ".png":
            assert written.read_text() == (page.parent / written.name).read_text(), "write the page again"


def test_comparison() -> None:
    """By hand: differences 1, 2, 3; mean 2, deviation 1, t = 2 * sqrt(3), and p of that with two degrees of freedom."""
    found = compare({0: 1.0, 1: 2.0, 2: 4.0, 7: 0.0}, {0: 2.0, 1: 4.0, 2: 7.0, 8: 0.0})
    assert (found.seeds, found.difference, found.spread) == (3, 2.0, 1.0)
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.verdict == "not told apart"
    assert compare({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.01}).verdict == "holds"
    assert compare({0: 2.0, 1: 3.0}, {0: 1.0, 1: 1.99}).verdict == "the other way round"
    assert compare({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).verdict == "not told apart"
    assert compare({0: 1.0}, {0: 2.0}).verdict == "one seed: no test"
    assert compare({0: 1.0}, {1: 2.0}).verdict == "not run"
    (row,) = comparison_table([({"of": "x"}, {0: 0.5}, {0: 0.51})])
    assert row == {"of": "x", "difference, points": "+1.00 (1)", "p": "", "verdict": "one seed: no test"}


def test_what_is_chosen() -> None:
    """The longest runs with the facts that are asked for, without a target or a change where none are."""
    lines = [*LINES, line("ternary, fixed", 0, 0.5, epochs=2), line("ternary, fixed", 1, 0.4, target=0.3)]
    assert values(chosen(lines, kind="ternary, fixed")) == pytest.approx({0: 0.75, 1: 0.75 + 1 / 90, 2: 0.75 + 2 / 90})
    assert percent(values(chosen(lines, kind="ternary, fixed", target=0.3))) == "40.00 (1)"
    assert percent(values(chosen(lines, kind="binary, fixed"))) == "71.00 ± 1.00 (3)"


def test_page(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results" / "paper_energy.json"
    (tmp_path / "paper_energy.json").write_text(results.read_text())
    results_file(tmp_path, "cifar10").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    reproduce.main(["page", "--output", str(tmp_path), "--page", str(tmp_path / "docs" / "results.md")])
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| cifar10 | 2 | 71.00 ± 1.00 (3) | 76.11 ± 1.11 (3) | 75.33 ± 1.15 (3) | 75.00 ± 1.00 (3) |" in page
    first, last = "| cifar10 | 2 | binary, fixed | ternary, fixed | +5.11", "| holds |"
    assert any(row.startswith(first) and row.endswith(last) for row in page.splitlines())
    assert "| ternary, fixed better than binary, fixed | 1 | 1 | 0 | 0 |" in page
    assert "| ternary, layer better than ternary, fixed | 1 | 0 | 1 | 0 |" in page
    assert "| cifar10 | 16 | 2.0 | 0.5 |" in page
    assert "| `act` | 1.485 |" in page
    assert "| accuracy | 88.00 (1) | 91.00 (1) |" in page
    assert "| TET | 74.50 (1) | +0.50 (1) |  | one seed: no test |" in page
    assert "| cifar10 | 17 | 0 | 0.01 | 2 |" in page  # the ANN has no fold
    assert "| no norms | layer | 69.00 (1) | 70.00 (1) | +1.00 (1) |" in page
    assert "| `act` | 1.20 ± 0.10 | live | +0.25 | 1.50 |" in page
    assert (tmp_path / "docs" / "results_membranes.png").stat().st_size > 5000
    with (tmp_path / "docs" / "results.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 12 + 24 + 8
    assert {cell["ours"] for cell in cells if cell["table"] != "5"} == {"not run here"}
    assert all(cell["command"] and cell["paper"] for cell in cells)
    recipes = {cell["command"].split()[3] for cell in cells if cell["table"] != "5"}
    assert all((ROOT / "zoo" / "recipes" / f"{recipe}.yaml").exists() for recipe in recipes)


def test_fast_runs(tmp_path: Path) -> None:
    """Their words are options of fit; the table has a row for each line."""
    for run in fast_runs.all_runs(["--data.root=/data"]):
        assert zoo.recipe_path(run.recipe).exists()
        assert all(word.startswith("--model.") for word in run.options)
    lines = [line("ternary, channel", 0, 0.9, 1, name="sparse", command="tspike fit --config cifar10_fast_sparse")]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    fast_runs.write_table(tmp_path / "lines.jsonl", tmp_path / "fast_runs.md")
    page = (tmp_path / "fast_runs.md").read_text()
    assert "| sparse | 1 | 90.00 | 0.500 | 0.50 | 8.0 | 2.0 | 1.0 |" in page
    assert "* sparse: `tspike fit --config cifar10_fast_sparse`" in page
    committed = ROOT / "benchmarks" / "results" / "fast_runs.jsonl"
    fast_runs.write_table(committed, tmp_path / "fast_runs.md")
    assert (tmp_path / "fast_runs.md").read_text() == committed.with_suffix(".md").read_text()


def test_runs_are_shared() -> None:
    """A name stands for one command, whichever claim asks for it."""
    commands: dict[str, list[str]] = {}
    for claim in CLAIMS.values():
        for dataset in claim.DATASETS:
            for run in claim.runs(dataset, 6, []):
                assert commands.setdefault(run.name, run.words) == run.words
    assert len(commands) > 100
    names = {run.name for run in frontier.all_runs("cifar10", 6, [])}
    assert len(names & commands.keys()) > 10


def test_what_there_is_to_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.main(["information", "fashion_mnist", "--list"])
    assert "fashion_mnist_binary-fixed_T2_seed0_epochs6" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        reproduce.main(["beyond", "nmnist"])
    assert "beyond is tested on cifar10; got 'nmnist'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_change_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that change the network are runs; the ANN that one of them starts from is trained first, without a line."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", x=rng.integers(0, 256, (60, 32, 32, 3), np.uint8), y=np.arange(60) % 10)
    data = [f"--data.root={tmp_path}", "--data.dataset=npz", "--data.batch_size=20", "--data.val_images=20"]
    runs = {
        change: narrow_run("cifar10", "ternary, layer", 0, data, change=change, epochs=1, timesteps=2)
        for change in CHANGES
    }
    precision = "--trainer.precision=32-true"  # not every processor has instructions for bfloat16
    runs = {change: with_option(run, precision) for change, run in runs.items()}
    trained = ("norm-free", "spike shortcuts", "from the ANN")
    train_all([runs[change] for change in trained], tmp_path / "lines.jsonl", tmp_path / "runs", jobs=2)
    found = {record["change"]: record for record in measuring.records(tmp_path / "lines.jsonl")}
    assert found.keys() == set(trained)
    effects = {change: {neuron["effect"] for neuron in record["neurons"].values()} for change, record in found.items()}
    assert effects["norm-free"] == {"live"}
    assert effects["spike shortcuts"] == {"live", "cancelled"}
    assert all(str(tmp_path) not in record["command"] for record in found.values())

    (ann,) = (tmp_path / "runs").glob("cifar10_ANN_T1_seed0_epochs1/runs/*/version_*/checkpoints/last.ckpt")
    monkeypatch.chdir(tmp_path)
    for run in (runs[change] for change in CHANGES if change not in trained):
        weights = [f"{run.ann_option}={ann}"] if run.ann is not None else []
        main([*run.words, *run.data, *weights, "--trainer.fast_dev_run=true"])


@pytest.mark.slow
def test_frames_of_events(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    with zipfile.ZipFile(shared("data/nmnist_small.zip")) as archive:
        archive.extractall(tmp_path)
    run = event_run("ternary, fixed", 0, [f"--data.root={tmp_path}", "--data.num_workers=0"])
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    train_all([replace(run, options=(*run.options, *short))], tmp_path / "lines.jsonl", tmp_path / "runs", jobs=1)
    (record,) = measuring.records(tmp_path / "lines.jsonl")
    assert (record["dataset"], record["timesteps"], record["fold"]["kept"]) == ("nmnist", 4, [])
    assert record["synops"] > 0
    assert record["training_seconds"] > 0
