"""What the callbacks share: finding the network, deciding when to observe it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from ..network.spiking_network import SpikingNetwork


class BatchObserver(Callback):
    """Observes the network over one training batch every n optimizer steps, in the first process alone.

    Subclasses say what is observed and what is logged of it; on all other batches there is no hook at all.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = check_every_n_steps(every_n_steps)
        self._observing = ExitStack()
        self._observed: Any = None  # what observe() gives, while a batch is observed
        self._last_step = -1
        self._is_due = False  # whether this batch is observed, by the first process

    def observe(self, network: SpikingNetwork) -> AbstractContextManager[Any]:
        """What is entered for a batch; what it yields is complete when it ends."""
        raise NotImplementedError

    def record(self, trainer: Trainer, observed: Any, step: int) -> None:
        """Log what was observed during optimizer step ``step``."""
        raise NotImplementedError

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_logger(trainer, self)
        network_of(pl_module, self)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        # with gradient accumulation several batches belong to one step: the first of them is observed
        self._is_due = trainer.global_step != self._last_step and is_log_step(trainer, self.every_n_steps)
        if self._is_due:
            self._last_step = trainer.global_step
        if self._is_due and trainer.is_global_zero:
            self._observed = self._observing.enter_context(self.observe(network_of(pl_module, self)))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._observed is not None:
            self._observing.close()
            observed, self._observed = self._observed, None
            self.record(trainer, observed, self._last_step)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._observing.close()
        self._observed = None


def check_every_n_steps(every_n_steps: int | None) -> int | None:
    if every_n_steps is not None and (isinstance(every_n_steps, bool) or every_n_steps < 1):
        raise MisconfigurationException(
            f"every_n_steps must be a whole number of at least 1, or None for the trainer's log_every_n_steps; "
            f"got {every_n_steps!r}"
        )
    return every_n_steps


def require_logger(trainer: Trainer, callback: object) -> None:
    if not trainer.loggers:
        name = type(callback).__name__
        raise MisconfigurationException(
            f"{name} has nowhere to log to: the trainer has no logger. Give it one (CSVLogger needs nothing installed) "
            f"or leave {name} out"
        )


def network_of(module: LightningModule, callback: object) -> SpikingNetwork:
    network = getattr(module, "network", None)
    if not isinstance(network, SpikingNetwork):
        raise MisconfigurationException(
            f"{type(callback).__name__} looks for a spiking network in the module's attribute `network`; "
            f"{type(module).__name__} has {type(network).__name__} there. Use TernarySNNModule, or put the result of "
            "lightning_tspike.network.swapping there"
        )
    return network


def target_of(module: LightningModule) -> float | None:
    """The share of synaptic operations that the loss of a module aims at, where it has such a target."""
    return getattr(getattr(module, "objective", None), "synops_target", None)


def is_log_step(trainer: Trainer, every_n_steps: int | None) -> bool:
    """Whether the batch that comes next, or just ended with an optimizer step, is one to log."""
    settings: Any = trainer
    return trainer.global_step % (every_n_steps or settings.log_every_n_steps) == 0
