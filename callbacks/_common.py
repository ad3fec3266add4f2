"""What the callbacks share: finding the network and the run's folder, deciding when to look."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from ..files.atomic import whole_file
from ..network.spiking_network import SpikingNetwork


class BatchWatcher(Callback):
    """Watches the network over one training batch every n optimizer steps, in the first process alone.

    Subclasses say what is watched and what is logged of it; on all other batches there is no hook at all.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = check_every_n_steps(every_n_steps)
        self._watching = ExitStack()
        self._seen: Any = None  # what watch() gives, while a batch is watched
        self._last_step = -1

    def watch(self, network: SpikingNetwork) -> AbstractContextManager[Any]:
        """What is entered for a batch; what it yields is complete when it ends."""
        raise NotImplementedError

    def record(self, trainer: Trainer, seen: Any, step: int) -> None:
        """Log what was seen during optimizer step ``step``."""
        raise NotImplementedError

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_logger(trainer, self)
        network_of(pl_module, self)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # with gradient accumulation several batches belong to one step: the first of them is looked at
        is_due = trainer.global_step != self._last_step and is_log_step(trainer, self.every_n_steps)
        if trainer.is_global_zero and is_due:
            self._last_step = trainer.global_step
            self._seen = self._watching.enter_context(self.watch(network_of(pl_module, self)))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._seen is not None:
            self._watching.close()
            seen, self._seen = self._seen, None
            self.record(trainer, seen, self._last_step)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watching.close()
        self._seen = None


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


def is_log_step(trainer: Trainer, every_n_steps: int | None) -> bool:
    """Whether the batch that comes next, or just ended with an optimizer step, is one to log."""
    settings: Any = trainer
    return trainer.global_step % (every_n_steps or settings.log_every_n_steps) == 0
