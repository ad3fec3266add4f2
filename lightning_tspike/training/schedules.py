"""Learning-rate schedules by timm: by epochs where their number is known, else by optimizer steps or by time."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from timm.scheduler import create_scheduler_v2
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

__all__ = ["TimedSchedule", "create_schedule"]

_NAMES = ("cosine", "tanh", "step", "constant", "multistep", "poly", "rsqrt")
_TRIANGULAR = "triangular"
_ENDLESS = ("constant", "multistep", "step")  # functions of the epoch alone, whenever training ends
_PARTS = 1_000_000  # of the time that a run has: what a schedule by time counts


def create_schedule(trainer: L.Trainer, optimizer: Optimizer, name: str, *, warmup_epochs: float = 0) -> dict[str, Any]:
    """A schedule that ends when the trainer does: after ``max_epochs``, or else ``max_steps``, or else ``max_time``.

    Args:
        trainer: It is about to fit.
        optimizer: What has the learning rate.
        name: A schedule that timm.scheduler knows, or ``"triangular"``.
        warmup_epochs: Epochs over which the learning rate rises linearly to its peak.

    Returns:
        The schedule and how often to step it, as ``configure_optimizers`` returns it.

    Raises:
        ValueError: The schedule cannot be planned: it would watch a metric, training has no end, or with ``max_steps``
            or ``max_time`` alone it cannot be known how many steps a warm-up takes.
    """
    if name == "plateau":
        raise ValueError("sched='plateau' is not supported: it would need a metric to watch; use 'cosine' or 'step'")
    if name == _TRIANGULAR:
        return {"scheduler": _triangular(trainer, optimizer, warmup_epochs), "interval": "step"}
    if name not in _NAMES:
        raise ValueError(
            f"timm has no learning-rate schedule {name!r}; it has {', '.join(_NAMES)}; or '{_TRIANGULAR}', or 'none'"
        )
    if warmup_epochs != int(warmup_epochs):
        raise ValueError(f"only sched='{_TRIANGULAR}' takes parts of epochs, got warmup_epochs={warmup_epochs!r}")
    warmup_epochs = int(warmup_epochs)
    max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    max_steps = trainer.max_steps
    if max_epochs >= 0 or name in _ENDLESS:
        by_epochs, _ = create_scheduler_v2(optimizer, name, num_epochs=max(max_epochs, 1), warmup_epochs=warmup_epochs)
        return {"scheduler": by_epochs, "interval": "epoch"}
    if max_steps >= 0:
        epoch = _steps_per_epoch(trainer, warmup_epochs) if warmup_epochs else max(max_steps, 1)
        by_steps = _by_updates(optimizer, name, epoch, num_epochs=max_steps / epoch, warmup_epochs=warmup_epochs)
        return {"scheduler": by_steps, "interval": "step"}
    timer = next((c for c in _timers(trainer) if c.time_remaining() is not None), None)
    if timer is None:
        raise ValueError(
            f"the schedule {name!r} must know when training ends: set the trainer's max_epochs (it is "
            f"{trainer.max_epochs}), max_steps or max_time, or sched='none'"
        )
    if warmup_epochs:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} needs to know which part of the training that is, and max_time alone does "
            "not say: set the trainer's max_epochs or max_steps as well, or warmup_epochs=0"
        )
    by_time = TimedSchedule(_by_updates(optimizer, name, _PARTS), timer, trainer)
    return {"scheduler": by_time, "interval": "step"}


class TimedSchedule:
    """A schedule of timm that follows the share of the trainer's ``max_time`` that has passed.

    Args:
        scheduler: Counts updates, of which a whole run has a million.
        timer: What ends the run.
        trainer: The run's.
    """

    def __init__(self, scheduler: Scheduler, timer: Timer, trainer: L.Trainer) -> None:
        self.scheduler, self.timer, self.trainer = scheduler, timer, trainer

    @property
    def optimizer(self) -> Optimizer:
        """What has the learning rate."""
        return self.scheduler.optimizer

    def step(self) -> None:
        """Set the learning rate for the time that has passed by now, the same on all processes."""
        elapsed, remaining = self.timer.time_elapsed(), self.timer.time_remaining() or 0.0
        passed = min(elapsed / max(elapsed + remaining, 1e-9), 1.0)
        self.scheduler.step_update(round(_PARTS * self.trainer.strategy.broadcast(passed)))

    def state_dict(self) -> dict[str, Any]:
        """The peak learning rates; the time that has passed is part of the timer's state."""
        return {"base_values": self.scheduler.base_values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the peak learning rates of a checkpoint."""
        self.scheduler.base_values = state["base_values"]


def _triangular(trainer: L.Trainer, optimizer: Optimizer, warmup_epochs: float) -> Scheduler:
    """Linearly up, and linearly down to 0 with the last step: what short runs do best with (arXiv 2404.00498)."""
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps) or steps < 0:
        raise ValueError(
            f"sched='{_TRIANGULAR}' must know how many steps there are: set the trainer's max_epochs (it is "
            f"{trainer.max_epochs}) or max_steps"
        )
    rising = round(warmup_epochs * _steps_per_epoch(trainer, warmup_epochs)) if warmup_epochs else 0
    if rising >= steps:
        raise ValueError(f"warmup_epochs={warmup_epochs} takes all of the {steps} steps: lower it")
    return PolyLRScheduler(
        optimizer, t_initial=int(steps) - rising, power=1.0, warmup_t=rising, warmup_prefix=True, t_in_epochs=False
    )


def _by_updates(optimizer: Optimizer, name: str, epoch: int, *, num_epochs: float = 1, warmup_epochs: int = 0) -> Any:
    """A schedule that counts updates, ``epoch`` of them in an epoch."""
    options: Any = {"num_epochs": num_epochs, "warmup_epochs": warmup_epochs}  # timm also takes parts of epochs
    return create_scheduler_v2(optimizer, name, step_on_epochs=False, updates_per_epoch=epoch, **options)[0]


def _steps_per_epoch(trainer: L.Trainer, warmup_epochs: float) -> int:
    trainer.fit_loop.setup_data()  # so that the number of batches is known
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            f"warmup_epochs={warmup_epochs} needs the number of batches in an epoch, and the training loader has no "
            "length: set the trainer's limit_train_batches or max_epochs, or warmup_epochs=0"
        )
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))


def _timers(trainer: L.Trainer) -> list[Timer]:
    callbacks: Any = trainer
    return [callback for callback in callbacks.callbacks if isinstance(callback, Timer)]
