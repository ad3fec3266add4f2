"""Which commands take a run folder ``version_N``: a fit that trains, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from typing_extensions import override

__all__ = ["DiscardUntrained", "folder_of_checkpoint", "without_numbered"]

_NUMBERED = (CSVLogger, TensorBoardLogger)


class DiscardUntrained(Callback):
    """Removes the folders that a fit has made for its logs if it fails before its first training batch.

    Args:
        trainer: The trainer, before it runs: folders that are there already stay.
    """

    def __init__(self, trainer: Trainer) -> None:
        folders = [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, _NUMBERED)]
        # each with the folders above it that it needs, the innermost first
        self.new = [[part for part in (path, *path.parents) if not part.exists()] for path in folders]
        self.has_trained = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self.has_trained = True

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.has_trained or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, _NUMBERED):
                logger.finalize("failed")  # it must not write afterwards
        for path, *above in filter(None, self.new):
            shutil.rmtree(path, ignore_errors=True)
            for parent in above:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()


def without_numbered(loggers: Any, described: Any) -> Any:
    """The value of the trainer's ``logger`` without loggers that would number a new folder.

    One whose ``version`` the user has chosen takes no number, and stays.

    Args:
        loggers: The value, with loggers that have been built.
        described: The same as a LightningCLI's configuration describes it.
    """
    pairs = zip(loggers, described, strict=True) if isinstance(loggers, list) else [(loggers, described)]
    return [logger for logger, text in pairs if isinstance(logger, Logger) and not _takes_number(logger, text)] or False


def _takes_number(logger: Logger, described: Any) -> bool:
    # by what the user has written: the logger's property `version` would choose one
    return isinstance(logger, _NUMBERED) and described.init_args.get("version") is None


def folder_of_checkpoint(checkpoint: str | Path) -> Path:
    """The folder of the run that has saved it: above ``checkpoints``, where ModelCheckpoint puts it."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder
