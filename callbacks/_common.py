"""What the logging callbacks share: finding the network, deciding when to log."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..ternarize import SpikingNetwork


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
            "lightning_tspike.ternarize there"
        )
    return network


def is_log_step(trainer: Trainer, every_n_steps: int | None) -> bool:
    """Whether the batch that comes next, or just ended with an optimizer step, is one to log."""
    settings: Any = trainer
    return trainer.global_step % (every_n_steps or settings.log_every_n_steps) == 0
