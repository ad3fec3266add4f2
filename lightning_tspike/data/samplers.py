"""Which process reads which samples, in which order: a function of seed, epoch and rank alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .._seeding import epoch_seed
from .samples import Samples

__all__ = ["EpochSampler", "InOrderSampler", "StreamLoader"]


class EpochSampler(DistributedSampler):
    """torch's DistributedSampler (also for one process), which hands the loader a generator that it seeds per epoch.

    The generator gives the seeds of the loader's worker processes. So both the order of the samples and the random
    augmentations depend on seed, epoch and rank alone, not on what was drawn before: a resumed run repeats them.

    No sample is seen twice in an epoch: where the samples cannot be shared out evenly, those at the end of the shuffled
    order, fewer than there are processes, wait for another epoch.
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if isinstance(self.dataset, Samples):
            self.dataset.epoch = epoch
        self.generator.manual_seed(epoch_seed(self.seed, epoch, self.rank))


class InOrderSampler(DistributedSampler):
    """Every sample exactly once over all processes, in order: what a figure on a validation or test set needs.

    torch's DistributedSampler repeats samples until all processes have as many, and they would be counted twice.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


class StreamLoader(DataLoader[Any]):
    """A loader for a :class:`lightning_tspike.data.samples.Stream`, which it tells the epoch before it is read.

    Lightning does that for samplers alone; without it every epoch would have the same order.
    """

    def __init__(self, dataset: Any, epoch: Callable[[], int], **options: Any) -> None:
        self.epoch = epoch
        dataset.source.set_loader_cfg(num_workers=options.get("num_workers", 0))
        super().__init__(dataset, **options)

    def __iter__(self) -> Any:
        source: Any = self.dataset
        source.source.set_epoch(self.epoch())
        return super().__iter__()
