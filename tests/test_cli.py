"""The command line, as a user runs it: real processes, real files."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_tspike import zoo


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lightning_tspike.cli import main; main()", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short fit of the digits recipe: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("run")
    result = process("fit", "--config", "digits", "--trainer.max_epochs=2", "--trainer.accelerator=cpu", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd, result.stdout


def test_fit_says_what_it_has_made(run: tuple[Path, str]) -> None:
    cwd, printed = run
    checkpoint = cwd / re.search(r"checkpoint: (.*)", printed)[1]
    folder = cwd / re.search(r"folded: +(.*)", printed)[1]
    assert checkpoint.is_file()
    unfolded, folded = re.search(r"unfolded ([\d.]+) %, folded ([\d.]+) % \(360 images; decisions", printed).groups()
    assert unfolded == folded
    assert "stages.2.0.act2" in printed.split("firing rates")[1]
    assert zoo.load(folder)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_fit_leaves_logs_and_configuration(run: tuple[Path, str]) -> None:
    version = run[0] / "runs" / "digits" / "version_0"
    with (version / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "train/acc1", "val/acc1", "amplitude/act1", "membrane/act1/q50"} <= set(columns)
    assert (version / "config.yaml").is_file()
    assert list((run[0] / "runs" / "digits" / "tensorboard" / "version_0").glob("events*"))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_checkpoint_can_be_evaluated(tspike: Callable[..., Any], run: tuple[Path, str], command: str) -> None:
    checkpoint = run[0] / "runs/digits/version_0/checkpoints/best.ckpt"
    result = tspike(command, "--config", "digits", f"--ckpt_path={checkpoint}", cwd=run[0])
    assert result.status is None, result.stderr
    assert f"{'val' if command == 'validate' else 'test'}/acc1" in result.stdout


def test_predict_writes_a_file(tspike: Callable[..., Any], run: tuple[Path, str]) -> None:
    checkpoint = run[0] / "runs/digits/version_0/checkpoints/best.ckpt"
    result = tspike("predict", "--config", "digits", f"--ckpt_path={checkpoint}", cwd=run[0])
    assert result.status is None, result.stderr
    files = list(run[0].glob("runs/**/predictions.csv"))
    assert len(files) == 1
    assert len(files[0].read_text().splitlines()) == 361


def test_fold_shows_tables_and_writes_a_folder(tspike: Callable[..., Any], run: tuple[Path, str]) -> None:
    checkpoint = run[0] / "runs/digits/version_0/checkpoints/best.ckpt"
    output = run[0] / "out" / "digits"
    result = tspike("fold", str(checkpoint), "--output", str(output), "--merge-bn", cwd=run[0])
    assert result.status is None, result.stderr
    assert re.search(r"stages\.1\.0\.act1 +1\.0000 +0\.5000 +\d+ +cancelled +yes", result.stdout)
    assert re.search(r"act1 +[\d.]+ +[\d.]+ +\d+ +live +yes", result.stdout)
    assert re.search(r"conv1 +real", result.stdout)
    assert "7 of 7 amplitudes folded" in result.stdout
    report = json.loads((output / "fold_report.json").read_text())
    assert report["deviation"] <= 1e-9
    assert len(report["merged_norms"]) == 9
    config = json.loads((output / "config.json").read_text())
    assert config["preprocessing"]["input_size"] == [1, 8, 8]
    exported = zoo.load(checkpoint.with_suffix(".folded"))
    x = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(zoo.load(output)(x), exported(x))
    assert (checkpoint.with_suffix(".folded") / "fold_report.json").is_file()  # FoldExport writes it, too


def test_fold_of_something_else(tspike: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("text")
    for name, message in (
        ("notes.ckpt", "damaged or not a Lightning checkpoint"),
        ("no.ckpt", "there is no checkpoint"),
    ):
        result = tspike("fold", name, cwd=tmp_path)
        assert result.status
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.ckpt"]


def test_smoke_run_without_checkpoints(tspike: Callable[..., Any], tmp_path: Path) -> None:
    result = tspike("fit", "--config=digits", "--trainer.fast_dev_run=true", cwd=tmp_path)
    assert result.status is None, result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--config", "digit"], "there is no recipe 'digit'; did you mean 'digits'"),
        (["test", "--config", "digits"], "needs trained weights: --ckpt_path"),
        (["fit", "--config", "digits", "--model.backbone=resnet43"], "did you mean .*resnet34"),
        (["fit", "--config", "digits", "--model.timesteps=0"], "timesteps must be a whole number of at least 1, got 0"),
        (["fit", "--config", "fashion_mnist", "--data.root=nowhere"], "train-images-idx3-ubyte"),
    ],
)
def test_mistakes_are_explained(tspike: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    result = tspike(*words, cwd=tmp_path)
    assert result.status
    assert re.search(message, result.stderr), result.stderr


def test_zoo_list(tspike: Callable[..., Any], tmp_path: Path) -> None:
    result = tspike("zoo", "list", "*imagenet", cwd=tmp_path)
    assert result.status is None
    assert "planned" in result.stdout
    assert "digits" not in result.stdout
