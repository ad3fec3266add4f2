"""Runs that were stopped and go on: which checkpoints are there, where they go on, and what the user is told."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_tspike import zoo
from lightning_tspike.cli.resume import command_to_go_on, keep_metrics

SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.backbone_kwargs={layers: [1, 1], widths: [4, 8]}",
    "--model.timesteps=1",
    "--data.batch_size=256",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_test_batches=0",
]
RUN = Path("runs/digits/version_0")


def epoch_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["epoch"]


def rows(run: Path, column: str) -> list[tuple[int, str]]:
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), row[column]) for row in csv.DictReader(file) if row[column]]


@pytest.fixture
def fit(tspike: Callable[..., Any]) -> Callable[..., Any]:
    def run(*words: str) -> Any:
        return tspike("fit", "--config", "digits", *SMALL, *words)

    return run


def test_a_run_goes_on_in_its_folder(fit: Callable[..., Any], tmp_path: Path) -> None:
    """With --ckpt_path last, from its last epoch; all is as if it had not been stopped, the log and the best, too."""
    constant = "--model.sched=none"  # no schedule that depends on the number of epochs
    result = fit("--trainer.max_epochs=2", constant)
    assert result.status is None, result.stderr
    run = tmp_path / RUN
    assert epoch_of(run / "checkpoints/last.ckpt") == 1
    before = rows(run, "val/loss")
    assert [step for step, _ in before] == [4, 9]

    result = fit("--trainer.max_epochs=4", constant, "--ckpt_path", "last")
    assert result.status is None, result.stderr
    assert f"resuming {RUN}/checkpoints/last.ckpt in its run folder, {RUN}" in result.stdout
    assert not re.search("will be deleted|is not empty", result.stderr)
    assert [path.name for path in (tmp_path / "runs/digits").glob("version_*")] == ["version_0"]
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "config.resumed.yaml"}
    assert "max_epochs: 2" in (run / "config.yaml").read_text()
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "best.folded", "last.ckpt", "last.folded"}

    result = fit("--trainer.max_epochs=4", constant)  # never stopped
    assert result.status is None, result.stderr
    whole = tmp_path / "runs/digits/version_1"
    for column in ("val/loss", "train/loss", "amplitude/act1", "membrane/act1/q50"):
        assert dict(rows(run, column)) == dict(rows(whole, column))
    for name in ("best", "last"):
        assert epoch_of(run / f"checkpoints/{name}.ckpt") == epoch_of(whole / f"checkpoints/{name}.ckpt")
        ours, theirs = (zoo.load(folder / f"checkpoints/{name}.folded").state_dict() for folder in (run, whole))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_earlier_epoch_starts_a_new_run(fit: Callable[..., Any], tmp_path: Path) -> None:
    """Going on from the best must not overwrite the epochs after it."""
    assert fit("--trainer.max_epochs=1").status is None
    best, last = (tmp_path / RUN / f"checkpoints/{name}.ckpt" for name in ("best", "last"))
    content = last.read_bytes()
    result = fit("--trainer.max_epochs=2", f"--ckpt_path={best}")
    assert result.status is None, result.stderr
    assert f"resuming {best} in a new run folder, runs/digits/version_1" in result.stdout
    assert last.read_bytes() == content
    assert last.with_suffix(".folded").is_dir()
    assert epoch_of(tmp_path / "runs/digits/version_1/checkpoints/last.ckpt") == 1


def test_a_checkpoint_that_is_not_there(tspike: Callable[..., Any], tmp_path: Path) -> None:
    result = tspike("fit", "--config", "digits", *SMALL, "--ckpt_path=nowhere.ckpt")
    assert result.status == 2
    assert "--ckpt_path=nowhere.ckpt: there is no such checkpoint" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_log_goes_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    """What was logged after it is logged again; a kill has left half a row."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.csv").write_text("epoch,step,val/acc1\n0,4,0.5\n1,9,0.7\n2,14,0.8\n2,1")
    torch.save({"global_step": 10}, tmp_path / "last.ckpt")
    logger = CSVLogger(tmp_path, name="", version="run")
    keep_metrics(logger, tmp_path / "last.ckpt")
    logger.log_metrics({"val/acc1": 0.9, "new": 1.0}, 14)
    logger.save()
    assert rows(tmp_path / "run", "val/acc1") == [(4, "0.5"), (9, "0.7"), (14, "0.9")]
    assert rows(tmp_path / "run", "new") == [(14, "1.0")]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_no_last_checkpoint_is_an_error(tspike: Callable[..., Any], tmp_path: Path, command: str) -> None:
    result = tspike(command, "--config", "digits", *SMALL, "--ckpt_path=last")
    assert result.status == 2
    assert re.search(r"there is no last checkpoint: no last\.ckpt in runs/digits/\*/checkpoints; give", result.stderr)
    assert not (tmp_path / "runs").exists()


def check_stopped(folder: Path, words: list[str], printed: str) -> None:
    run = folder / RUN / "checkpoints"
    assert f"checkpoint: {RUN}/checkpoints/last.ckpt\n" in printed
    told = re.search(r"to go on: +(.*)", printed)[1]
    assert told == command_to_go_on(words, RUN / "checkpoints/last.ckpt")
    assert {path.name for path in run.iterdir()} == {"best.ckpt", "best.folded", "last.ckpt", "last.folded"}
    for name in ("best", "last"):
        saved, folded = (zoo.load(run / f"{name}{end}") for end in (".ckpt", ".folded"))
        x = torch.rand(8, 1, 8, 8)
        torch.testing.assert_close(folded(x), saved(x))


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests were started in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


WORDS = ["fit", "--config", "digits", *SMALL, "--trainer.max_epochs=1000"]


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_who_stops_a_run_is_told_how_it_goes_on(
    tspike: Callable[..., Any], tmp_path: Path, stop: signal.Signals, status: int
) -> None:
    """Stopped as soon as the checkpoint is there: with Ctrl-C, in the midst of folding it."""

    def send() -> None:
        while not (tmp_path / RUN / "checkpoints/last.ckpt").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), stop)

    sender = threading.Thread(target=send)
    sender.start()
    result = tspike(*WORDS)
    sender.join()
    assert result.status == status, result.stderr
    check_stopped(tmp_path, WORDS, result.stderr)


@pytest.mark.slow
def test_a_real_process_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from lightning_tspike.cli.main import main; main()", *WORDS]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            while not (tmp_path / RUN / "checkpoints/last.ckpt").exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 1, printed
    check_stopped(tmp_path, WORDS, printed)


def test_stopped_before_the_first_checkpoint(tspike: Callable[..., Any], tmp_path: Path) -> None:
    def send() -> None:
        while not (tmp_path / RUN / "config.yaml").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    result = tspike(*WORDS, "--trainer.limit_train_batches=1.0", "--data.batch_size=1")
    sender.join()
    assert result.status == 1
    assert "no checkpoint: the first one is saved at the end of an epoch" in result.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_full_disk_leaves_no_part_of_a_checkpoint(tspike: Callable[..., Any], tmp_path: Path) -> None:
    """A real one, on another filesystem than that of temporary files, with room for the log alone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs root, who may mount a small disk")
    try:
        result = tspike("fit", "--config", "digits", *SMALL[:2], "--trainer.max_epochs=1", cwd=disk)
        assert "No space left on device" in result.stderr
        assert "best.ckpt" in result.stderr
        assert (disk / RUN / "checkpoints").is_dir()
        assert not list((disk / RUN / "checkpoints").iterdir())
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_the_command_to_go_on() -> None:
    recipe = str(zoo.recipe_path("digits"))
    for words in (
        ["fit", "--config", recipe, "--ckpt_path", "last", "--trainer.max_epochs=3"],
        ["fit", f"--config={recipe}", "--trainer.max_epochs=3", "--ckpt_path=a.ckpt"],
    ):
        told = command_to_go_on(words, Path("my runs/last.ckpt"))
        assert told.replace("=digits", " digits") == (
            "tspike fit --config digits --trainer.max_epochs=3 '--ckpt_path=my runs/last.ckpt'"
        )
