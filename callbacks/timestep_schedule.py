"""Fewer time steps in the first epochs: a step of training costs in proportion to T, and weights fit any T."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from ._common import network_of

__all__ = ["TimestepSchedule"]


class TimestepSchedule(Callback):
    """Trains the first epochs with fewer time steps, the others with those of the network.

    Each epoch is validated with the time steps that it is trained with.

    Args:
        first: Time steps T of the first epochs.
        share: How many of all epochs these are, in (0, 1); at least the last epoch has all time steps.

    Raises:
        ValueError: An argument is out of range.
        MisconfigurationException: When a fit starts: the network has fewer than ``first`` time steps, or the
            trainer's ``max_epochs`` is not known.
    """

    def __init__(self, first: int = 1, share: float = 0.5) -> None:
        if first < 1:
            raise ValueError(f"first must be at least 1 time step, got {first!r}")
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share!r}")
        self.first, self.share = first, share
        self._last: int | None = None  # of a run that is resumed, the network has those of its checkpoint

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise MisconfigurationException(
                f"TimestepSchedule needs the trainer's max_epochs, got {trainer.max_epochs}"
            )
        if self._last is None:
            self._last = network_of(pl_module, self).timesteps
        if self._last < self.first:
            raise MisconfigurationException(
                f"the network has timesteps={self._last}, and TimestepSchedule begins with first={self.first}: give "
                "it more, or leave the callback out"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer, pl_module)  # a run that goes on in the middle of an epoch does not start one

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer, pl_module)

    def _set(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._last is not None
        assert trainer.max_epochs is not None
        changes_at = min(round(self.share * trainer.max_epochs), trainer.max_epochs - 1)
        timesteps = self.first if trainer.current_epoch < changes_at else self._last
        network = network_of(pl_module, self)
        if network.timesteps != timesteps:
            network.timesteps = timesteps
            rank_zero_info(f"epoch {trainer.current_epoch}: {timesteps} time steps")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict["last"]
