"""The command line, as a user runs it: real processes, real files."""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_tspike import zoo
from lightning_tspike.cli.main import main
from lightning_tspike.cli.user_errors import explained
from lightning_tspike.neurons import check_timesteps


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lightning_tspike.cli.main import main; main()", *words]
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
    assert files == [run[0] / "runs/digits/version_0/predictions.csv"]  # where its checkpoint is
    assert len(files[0].read_text().splitlines()) == 361


def test_only_training_takes_a_run_folder(tspike: Callable[..., Any], run: tuple[Path, str]) -> None:
    """Not a test, a prediction or help; not a fit that fails in its options, its data or its first look at them."""
    checkpoint = run[0] / "runs/digits/version_0/checkpoints/best.ckpt"
    before = sorted(path for path in run[0].rglob("*") if path.name != "predictions.csv")
    for words in (
        ["test", "--config", "digits", f"--ckpt_path={checkpoint}"],
        ["predict", "--config", "digits", f"--ckpt_path={checkpoint}"],
        ["fit", "--config", "digits", "--model.backbone=resnet43"],
        ["fit", "--config", "digits", "--model.num_classes=5"],  # the data has 10: found by the sanity check
        ["fit", "--config", "digits", "--ckpt_path=nowhere.ckpt"],
        ["fit", "--config", "digits", "--print_config"],
    ):
        tspike(*words, cwd=run[0])
    assert sorted(path for path in run[0].rglob("*") if path.name != "predictions.csv") == before


def test_a_fit_that_does_not_start_leaves_nothing(tspike: Callable[..., Any], tmp_path: Path) -> None:
    result = tspike("fit", "--config", "digits", "--model.num_classes=5", cwd=tmp_path)
    assert "set num_classes to the number of classes" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_logger_whose_version_is_chosen_stays(tspike: Callable[..., Any], run: tuple[Path, str]) -> None:
    checkpoint = run[0] / "runs/digits/version_0/checkpoints/best.ckpt"
    options = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mine", "--trainer.logger.version=kept"]
    result = tspike("test", "--config", "digits", f"--ckpt_path={checkpoint}", *options, cwd=run[0])
    assert result.status is None, result.stderr
    assert "test/acc1" in (run[0] / "mine/lightning_logs/kept/metrics.csv").read_text()


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
    # FoldExport writes one, too: both count operations on the images that the network was trained on
    other = json.loads((checkpoint.with_suffix(".folded") / "fold_report.json").read_text())
    macs, others = ({layer["name"]: layer["dense_macs"] for layer in r["layers"]} for r in (report, other))
    assert macs == others
    assert macs["conv1"] == 2 * 8 * 8 * 9 * 8  # T, height and width, the kernel, output channels


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
        (["fit", "--config", "resnet19_cifar"], "there is no recipe 'resnet19_cifar'; did you mean '.*resnet19"),
        (["test", "--config", "digits"], "needs trained weights: --ckpt_path"),
        (["fit", "--config", "digits", "--model.backbone=resnet43"], "did you mean .*resnet34"),
        (["fit", "--config", "digits", "--model.timesteps=0"], "timesteps must be a whole number of at least 1, got 0"),
        (["fit", "--config", "digits", "--model.sched=plateau"], "sched='plateau' is not supported"),
        (["fit", "--config", "digits", "--model.sched=cosin"], "no learning-rate schedule 'cosin'; it has cosine"),
        (["fit", "--config", "digits", "--model.opt=sgdd"], "no optimizer 'sgdd'; it has sgd"),
        (["fit", "--config", "digits", "--trainer.accelerator=abacus"], "invalid accelerator name"),
        (["fit", "--config", "digits", "--ckpt_path=no.ckpt"], "no.ckpt"),
        (["test", "--config", "digits", "--ckpt_path=text.ckpt"], "text.ckpt is damaged or not a Lightning checkpoint"),
        (["test", "--config", "digits", "--ckpt_path=list.ckpt"], "list.ckpt is damaged or not a Lightning checkpoint"),
        (["fit", "--config", "fashion_mnist", "--data.root=nowhere"], "train-images-idx3-ubyte"),
        (["classify", "tspike-digits", "text.ckpt"], "text.ckpt cannot be read as an image"),
        (["zoo", "info", "digits"], "the zoo has no entry 'digits'; did you mean 'tspike-digits'"),
        (["data", "check", "fashion_mnist", "--data.root=nowhere"], "train-images-idx3-ubyte"),
    ],
)
def test_mistakes_are_explained(tspike: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "text.ckpt").write_text("text")
    torch.save([torch.zeros(2)], tmp_path / "list.ckpt")
    result = tspike(*words, cwd=tmp_path)
    # a text is what Python prints before it ends with status 1; a traceback would be one, too
    said = result.status if isinstance(result.status, str) else result.stderr.splitlines()[-1]
    assert said.startswith("tspike"), said
    assert re.search(message, said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt", "--config", "digits"], "there is no command 'fitt'; did you mean 'fit'?"),
        (["frobnicate"], "there is no command 'frobnicate'; there are fit, validate"),
        (["fit", "--config", "digits", "--model.timestep=3"], "--model.timestep=3; did you mean --model.timesteps?"),
        (["fit", "--config", "digits", "--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
        (["fit", "--config", "digits", "--model.timesteps=x"], "model.timesteps"),
        (["fit"], "--config digits"),
        (["test", "--config", "digits"], "needs trained weights"),
        (["zoo", "list", "--stat", "trained"], "--stat"),
        (["zoo", "verfy", "tspike-digits"], "there is no command 'verfy'; did you mean 'verify'?"),
        (["zoo", "verify", "tspike-digits", "--data.root=."], "--data.root=."),  # of which recipe?
        (["zoo"], "zoo needs a command"),
        (["--frobnicate"], "--frobnicate"),
        (["report"], "run"),
        (["classify", "tspike-digits"], "IMAGE"),
        (["classify", "tspike-digits", "a.png", "--top=0"], "--top must be at least 1, got 0"),
        (["predict", "--model", "tspike-digits", "a.png"], "use tspike classify NETWORK IMAGE..."),
        (["predict", "--config", "digits"], "needs trained weights"),
    ],
)
def test_a_wrong_command_line(tspike: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    """Status 2, the option or command that was meant, and no beginning of a word that passes for the word."""
    result = tspike(*words, cwd=tmp_path)
    assert result.status == 2
    assert message in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["zoo", "--help"],
        ["zoo", "list", "--help"],
        ["help", "classify"],
        ["report", "--help"],
        ["fitt"],
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(tmp_path: Path, words: list[str]) -> None:
    code = (
        "import sys\nfrom lightning_tspike.cli.main import main\ntry: main()\nfinally:\n"
        "    assert not {'torch', 'lightning', 'timm', 'matplotlib'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == (2 if words == ["fitt"] else 0), result.stderr


def test_help_and_version(tspike: Callable[..., Any]) -> None:
    """Every command has a line: those of LightningCLI and ours."""
    networks = ["classify", "fold", "import-official", "import-spikingjelly", "show", "bench", "export"]
    commands = ["fit", "validate", "test", "predict", "doctor", *networks, "data check", "report", "completion"]
    zoo_commands = ["list", "info", "load", "card", "verify", "publish"]
    for words, listed in (
        ([], [*commands, *(f"zoo {command}" for command in zoo_commands)]),
        (["help"], [*commands, *(f"zoo {command}" for command in zoo_commands)]),
        (["--help"], [*commands, *(f"zoo {command}" for command in zoo_commands)]),
        (["zoo", "--help"], zoo_commands),
        (["data", "--help"], ["check"]),
    ):
        result = tspike(*words)
        assert result.status == 0
        assert re.findall(r"^  ([a-z][-a-z ]*?)  +[a-z].*", result.stdout, re.M) == listed
        assert max(map(len, result.stdout.splitlines())) <= 82
    assert tspike("--version").stdout == f"lightning-tspike {version('lightning-tspike')}\n"


def test_help_of_lightnings_commands_is_lightnings(tspike: Callable[..., Any]) -> None:
    for words in (["predict", "--help"], ["help", "predict"]):
        result = tspike(*words)
        assert result.status == 0
        assert "--model.timesteps" in result.stdout
        assert "--trainer.accelerator" in result.stdout


def test_main_takes_words_and_leaves_those_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["a_program", "of", "its", "own"])
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config=digits", "--print_config"])
    assert end.value.code == 0
    assert not [warning for warning in recwarn if "args" in str(warning.message)]
    assert sys.argv == ["a_program", "of", "its", "own"]


@pytest.mark.parametrize("blocked", ["file", "full"])
def test_a_place_that_takes_no_files(tspike: Callable[..., Any], tmp_path: Path, blocked: str) -> None:
    """Where logs go there is a file, or no file can grow further: one line, no traceback."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if blocked == "file":
        (tmp_path / "runs").write_text("")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        result = tspike("fit", "--config", "digits", "--trainer.accelerator=cpu", "--trainer.max_epochs=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.status.startswith("tspike: [Errno "), result.status
    assert "\n" not in result.status


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    """What no check has raised is for us to mend."""
    with pytest.raises(ValueError, match="invalid literal"), explained():
        int("x")
    with pytest.raises(SystemExit, match="tspike: timesteps must be a whole number of at least 1, got 0"), explained():
        check_timesteps(0)


def test_zoo_list(tspike: Callable[..., Any], tmp_path: Path) -> None:
    result = tspike("zoo", "list", "*imagenet", cwd=tmp_path)
    assert result.status is None
    assert "planned" in result.stdout
    assert "digits" not in result.stdout
    whole = tspike("zoo", "list", "*fashion-mnist-fast", cwd=tmp_path).stdout.split()  # on however narrow a terminal
    assert whole[:6] == ["name", "T", "accuracy", "size", "latency", "recipe"]
    assert {"tspike-fashion-mnist-fast", "2", "94.18", "%", "0.5", "MB", "ms"} <= set(whole)
