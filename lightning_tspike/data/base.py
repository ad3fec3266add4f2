"""What the classification datamodules have in common: loaders, and the report of samples that were left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from .._seeding import run_seed
from .image_transforms import Mixing
from .options import Loading
from .samplers import EpochSampler, InOrderSampler, ResumableLoader, StreamLoader
from .samples import OnError, Samples, Stream, collate_readable

__all__ = ["ClassificationDataModule"]


class ClassificationDataModule(L.LightningDataModule):
    """Base of the datamodules here: batches (images [B, C, H, W] or frames [B, T, C, H, W], labels [B]).

    Subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``. With several processes each sample is read
    by one of them; which one, and in which order, depends on seed and epoch alone.

    Attributes:
        num_classes: Number of classes K.
        class_names: Their names in the order of the labels, or None where the data has none.
        preprocessing: What it takes to make the network's input from new images or recordings, ``input_size`` (C, H,
            W), ``mean`` and ``std`` of the channels among it, as a plain dict
            (:meth:`lightning_tspike.files.input_spec.InputSpec.to_dict`); it travels with the weights.
        train_collate: Makes a training batch of samples.
    """

    num_classes: int
    class_names: Sequence[str] | None = None
    preprocessing: dict[str, Any]
    train_set: Samples | Stream
    val_set: Samples | Stream
    test_set: Samples | Stream

    def __init__(self, batch_size: int, num_workers: int, on_error: OnError = "raise") -> None:
        super().__init__()
        loading = Loading(batch_size=batch_size, num_workers=num_workers, on_error=on_error)
        self.batch_size, self.num_workers, self.on_error = loading.batch_size, loading.num_workers, loading.on_error
        self.train_collate: Callable[[Any], Any] = collate_readable

    def train_dataloader(self) -> DataLoader[Any]:
        trainer: Any = self.trainer
        if isinstance(self.train_set, Stream):
            return self._stream_loader(self.train_set, self.train_collate)
        sampler = EpochSampler(self.train_set, *self._processes(), seed=run_seed() or 0)
        # Worker processes start before Lightning tells the sampler which epoch a resumed run is in. (`current_epoch` is
        # one behind where the checkpoint was saved at the very end of an epoch.)
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed if trainer else 0)
        return ResumableLoader(
            self.train_set,
            sampler=sampler,
            generator=sampler.generator,
            collate_fn=self.train_collate,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.test_set)

    def teardown(self, stage: str) -> None:
        """Say what was left out (each process for itself: it knows only what it has read)."""
        parts = {id(part): part for name in ("train", "val", "test") if (part := getattr(self, f"{name}_set", None))}
        for part in parts.values():
            if isinstance(part, Samples) and (files := part.unreadable):
                rank_zero_warn(
                    f"{len(files)} of {len(part)} samples could not be read and were left out: "
                    f"{', '.join(files[:5])}{' ...' if len(files) > 5 else ''}"
                )

    def _set_up_mixing(self, mixup: float, cutmix: float) -> None:
        """Mix training batches, where either is asked for; as soon as the number of classes is known."""
        if mixup or cutmix:
            self.train_collate = Mixing(self.num_classes, mixup=mixup, cutmix=cutmix)

    def _in_order(self, dataset: Samples | Stream) -> DataLoader[Any]:
        if isinstance(dataset, Stream):
            return self._stream_loader(dataset, collate_readable)
        sampler = InOrderSampler(dataset, *self._processes())
        return DataLoader(dataset, sampler=sampler, collate_fn=collate_readable, **self._loading())

    def _stream_loader(self, dataset: Stream, collate: Callable[[Any], Any]) -> DataLoader[Any]:
        def epoch() -> int:
            trainer: Any = self.trainer
            return trainer.current_epoch if trainer else 0

        return StreamLoader(dataset, epoch, collate_fn=collate, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
        }

    def _processes(self) -> tuple[int, int]:
        """How many processes read, and which of them this is."""
        trainer: Any = self.trainer
        return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
