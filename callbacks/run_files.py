"""Where the files of a run go, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ..files.atomic import whole_file

__all__ = ["run_folder", "write_json"]


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go, checkpoints by default among them; to be asked by the first process alone."""
    for logger in trainer.loggers:
        if (folder := getattr(logger, "log_dir", None)) is not None:
            return Path(folder)
    for logger in trainer.loggers:
        if logger.save_dir is not None and logger.version is not None:
            return Path(logger.save_dir, str(logger.name), str(logger.version))
    return Path(trainer.default_root_dir)


def write_json(file: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        stream.write((json.dumps(content) + "\n").encode())
