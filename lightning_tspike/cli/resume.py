"""Where a stopped run left its last checkpoint, and how ``tspike fit`` goes on in its folder."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from ..files.atomic import whole_file
from ..zoo import recipe_path

__all__ = [
    "command_to_go_on",
    "ends_of_processes",
    "enter_run_folder",
    "keep_metrics",
    "last_checkpoint",
    "newest_checkpoint",
]

_IS_LAST = re.compile(r"last(-v\d+)?\.ckpt")
_LOGGERS = ("CSVLogger", "TensorBoardLogger")  # whose runs have the folders save_dir/name/version_N


def last_checkpoint(trainer: Any) -> Path:
    """The last checkpoint of the newest run: of all that this trainer's runs have written, the latest.

    Args:
        trainer: The trainer's part of a LightningCLI's configuration, before anything is built of it.

    Raises:
        FileNotFoundError: There is none; the message says where it was looked for.
    """
    folders = list(_checkpoint_folders(trainer))
    files = [file for folder in folders for file in folder.glob("last*.ckpt") if _IS_LAST.fullmatch(file.name)]
    if not files:
        root = _runs(trainer)
        places = [str(root / "*" / "checkpoints")] if root else []
        places += [str(folder) for folder in folders if root is None or root not in folder.parents]
        raise FileNotFoundError(
            f"there is no last checkpoint: no last.ckpt in {' or '.join(places) or 'a place that is known'}; give the "
            "path of one, or leave --ckpt_path out to start from the beginning"
        )
    return max(files, key=lambda file: file.stat().st_mtime_ns)


def enter_run_folder(trainer: Any, checkpoint: Path) -> bool:
    """Have a fit go on in the run folder that a last checkpoint is in, where its logger makes such folders.

    Any other checkpoint is the start of a new run: going on from an earlier epoch must not overwrite later ones.

    Args:
        trainer: As for :func:`last_checkpoint`; the version of its first logger is set.
        checkpoint: What is resumed.

    Returns:
        Whether it goes on there.
    """
    root, logger = _runs(trainer), _first_logger(trainer)
    run = checkpoint.resolve().parent.parent
    if root is None or logger is None or logger.init_args.get("version") is not None:
        return False
    if not _IS_LAST.fullmatch(checkpoint.name) or run / "checkpoints" != checkpoint.resolve().parent:
        return False
    if run.parent != root.resolve():
        return False
    number = run.name.removeprefix("version_")
    logger.init_args["version"] = int(number) if number.isdigit() and number != run.name else run.name
    return True


def keep_metrics(logger: CSVLogger, checkpoint: Path) -> None:
    """Have ``metrics.csv`` go on with what was logged up to a checkpoint; a CSVLogger by itself would empty it."""
    file = Path(logger.log_dir) / "metrics.csv"
    if not file.is_file():
        return
    last_step = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    text = io.StringIO(newline="")
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        columns = list(reader.fieldnames or ())
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        # a kill may have left part of a row
        writer.writerows(row for row in reader if (row["step"] or "").isdigit() and int(row["step"]) <= last_step)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
        experiment: Any = logger.experiment  # deletes the file
    with whole_file(file) as stream:
        stream.write(text.getvalue().encode())
    experiment.metrics_keys = columns


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """The checkpoint to go on from after a run was stopped, or None where it has not saved any and resumed none."""
    files = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            paths = {callback.best_model_path, callback.last_model_path, *callback.best_k_models} - {""}
            # a run that went on elsewhere remembers checkpoints of the one before
            files += [
                path for path in map(Path, paths) if path.is_file() and path.parent == Path(str(callback.dirpath))
            ]
    resumed = Path(trainer.ckpt_path) if trainer.ckpt_path else None
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=resumed)


def ends_of_processes(trainer: Trainer) -> list[str]:
    """How processes ended, badly, that Lightning has started beside this one.

    A killed one says nothing itself, and all that the others hear is that a connection was closed.
    """
    processes: Sequence[subprocess.Popen[Any]] = getattr(trainer.strategy.launcher, "procs", ())
    end = time.monotonic() + 1  # the connection is closed a little before the process is gone
    while processes and not any(process.poll() for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return [
        f"the process of rank {rank} (pid {process.pid}) "
        + (f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with status {code}")
        for rank, process in enumerate(processes, trainer.global_rank + 1)
        if (code := process.poll())
    ]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def command_to_go_on(words: Sequence[str], checkpoint: Path) -> str:
    """The command of a run, by its words after ``tspike``, so that it goes on from a checkpoint."""
    kept: list[str] = []
    is_value = False
    for word in words:
        if not is_value and word.split("=")[0] != "--ckpt_path":
            kept.append(_as_recipe(word))
        is_value = word == "--ckpt_path"
    return shlex.join(["tspike", *kept, f"--ckpt_path={checkpoint}"])


def _as_recipe(word: str) -> str:
    """A recipe's path is long; its name will do."""
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if path.suffix == ".yaml" and path.is_file() and path.parent == recipe_path("digits").parent:
        return f"{option}{equals}{path.stem}"
    return word


def _first_logger(trainer: Any) -> Any:
    """Its configuration, where it is one of those that number their runs."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    first = loggers[0] if loggers else None
    return first if getattr(first, "class_path", "").rpartition(".")[2] in _LOGGERS else None


def _runs(trainer: Any) -> Path | None:
    """The folder that has the folders of runs, or None where the logger names them otherwise."""
    if trainer.logger is None or trainer.logger is True:
        return Path(trainer.default_root_dir or os.getcwd()) / "lightning_logs"
    logger = _first_logger(trainer)
    return None if logger is None else Path(logger.init_args.save_dir, logger.init_args.get("name") or "")


def _checkpoint_folders(trainer: Any) -> Iterator[Path]:
    if root := _runs(trainer):
        yield from root.glob("*/checkpoints")
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    for callback in callbacks:
        arguments = getattr(callback, "init_args", None) or {}
        if folder := arguments.get("dirpath"):
            yield Path(folder)
