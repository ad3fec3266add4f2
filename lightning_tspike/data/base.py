"""What the classification datamodules have in common: loaders whose order is a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ..seeding import epoch_seed, run_seed

__all__ = ["ClassificationDataModule", "EpochSampler"]


class EpochSampler(DistributedSampler):
    """torch's DistributedSampler (also for one process), which hands the loader a generator that it seeds per epoch.

    The generator gives the seeds of the loader's worker processes. So both the order of the samples and the random
    augmentations depend on seed, epoch and rank alone, not on what was drawn before: a resumed run repeats them.
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.generator.manual_seed(epoch_seed(self.seed, epoch, self.rank))


class ClassificationDataModule(L.LightningDataModule):
    """Base of the datamodules here: batches (images [B, C, H, W], labels [B]).

    Subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    Attributes:
        num_classes: Number of classes K.
        preprocessing: ``input_size`` (C, H, W), ``mean`` and ``std`` per channel of the images in [0, 1]; it travels
            with the weights, so that whoever loads them prepares images in the same way.
    """

    num_classes: int
    preprocessing: dict[str, Sequence[float]]
    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers!r}")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        trainer: Any = self.trainer
        sampler = EpochSampler(
            self.train_set,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=run_seed() or 0,
        )
        # Worker processes start before Lightning tells the sampler which epoch a resumed run is in. (`current_epoch` is
        # one behind where the checkpoint was saved at the very end of an epoch.)
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed if trainer else 0)
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            sampler=sampler,
            generator=sampler.generator,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.test_set)

    def _in_order(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(
            dataset, batch_size=self.batch_size, num_workers=self.num_workers, pin_memory=torch.cuda.is_available()
        )
