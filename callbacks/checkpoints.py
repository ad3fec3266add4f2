"""Which checkpoints a run keeps: that of its best epoch and that of its last."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

__all__ = ["BestCheckpoint", "LastCheckpoint", "best_checkpoint"]


def best_checkpoint(trainer: Trainer) -> Path | None:
    """The best checkpoint of the first callback that looks at a metric, or else what the first one has saved last."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    callbacks.sort(key=lambda callback: callback.monitor is None)
    return Path(callbacks[0].best_model_path) if callbacks and callbacks[0].best_model_path else None


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the epoch with the best value of a metric; of equal ones the latest.

    Args:
        monitor: The metric, as it is logged.
        mode: Whether ``"max"`` or ``"min"`` is best.
        filename: Name of the file, without ``.ckpt``; see Lightning's ModelCheckpoint for ``{epoch}`` and the like.
        dirpath: Its folder; by default ``checkpoints`` in the run's folder.
    """

    def __init__(
        self,
        monitor: str = "val/acc1",
        mode: Literal["max", "min"] = "max",
        filename: str = "best",
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(dirpath, filename, monitor=monitor, mode=mode)

    @override
    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a value is to be kept: where it is better than the one that is, or just as good."""
        if super().check_monitor_top_k(trainer, current):
            return True
        kept = self.best_k_models.get(self.kth_best_model_path)
        if current is None or kept is None:
            return False
        # the processes must agree on it, as they do in ModelCheckpoint
        return trainer.strategy.reduce_boolean_decision(bool(current == kept))


class LastCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the last epoch, ``last.ckpt``, whatever its metrics: a stopped run goes on from there.

    ``ModelCheckpoint(save_last=True)`` keeps a copy of the last checkpoint that it saved for its metric, so all epochs
    after the best one are lost when a run is stopped.

    Args:
        dirpath: Its folder; by default ``checkpoints`` in the run's folder.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        # at the end of the training epoch: validation may come less often
        super().__init__(dirpath, self.CHECKPOINT_NAME_LAST, save_on_train_epoch_end=True)
