"""Which checkpoints a run keeps: that of its best epoch and that of its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from typing_extensions import override

from ._stop_signal import StopSignal

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

    SIGTERM, by which schedulers ask for a machine back, ends the run with its checkpoint saved: after the step that is
    under way, in all processes alike, or, once the epoch's steps are done, after its validation. With the datamodules
    here a run goes on in the middle of an epoch as if it had not been stopped. A second SIGTERM waits for nothing more
    than the batch under way.

    Args:
        dirpath: Its folder; by default ``checkpoints`` in the run's folder.

    Raises:
        SIGTERMException: Of Lightning, out of ``Trainer.fit``, after SIGTERM.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        # at the end of the training epoch: validation may come less often
        super().__init__(dirpath, self.CHECKPOINT_NAME_LAST, save_on_train_epoch_end=True)
        self._stop = StopSignal()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._stop.listen()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # gradients that are being accumulated are in no checkpoint; the last batch is followed by validation
        has_stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if has_stepped and not trainer.is_last_batch and self._is_told_to_stop(trainer):
            super().on_train_epoch_end(trainer, pl_module)  # saves
            raise SIGTERMException

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_told_to_stop(trainer):  # in the validation of the epoch before, which has been saved
            raise SIGTERMException

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._stop.forget()
        if self._is_told_to_stop(trainer):
            raise SIGTERMException

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop.forget()
        super().on_exception(trainer, pl_module, exception)

    def _is_told_to_stop(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._stop.came, all=False)
