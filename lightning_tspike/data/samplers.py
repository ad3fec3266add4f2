"""Which process reads which samples, in which order: a function of seed, epoch and rank alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .._seeding import stream_seed
from .samples import Samples

__all__ = ["EpochSampler", "InOrderSampler", "ResumableLoader", "StreamLoader"]


class EpochSampler(DistributedSampler):
    """torch's DistributedSampler (also for one process), which hands the loader a generator that it seeds per epoch.

    The generator gives the seeds of the loader's worker processes. So both the order of the samples and the random
    augmentations depend on seed, epoch, batch and rank alone, not on what was drawn before: a resumed run repeats them.

    No sample is seen twice in an epoch: where the samples cannot be shared out evenly, those at the end of the shuffled
    order, fewer than there are processes, wait for another epoch.

    Attributes:
        start: How many samples the next pass leaves out at its beginning, where it goes on in the middle of an epoch.
    """

    start = 0

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if isinstance(self.dataset, Samples):
            self.dataset.epoch, self.dataset.seed = epoch, self.seed
        self.generator.manual_seed(stream_seed(self.seed, epoch, self.rank))

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return islice(super().__iter__(), start, None)


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


class ResumableLoader(DataLoader[Any]):
    """A loader of training batches that goes on in the middle of an epoch; Lightning keeps its state in checkpoints.

    With an :class:`EpochSampler` it goes on at once; otherwise the batches before are read and dropped.
    """

    _first = 0  # batch of the next pass
    _read = 0  # batches of this epoch so far

    def state_dict(self) -> dict[str, int]:
        """Which batch of the epoch comes next; at its end, that is the first one."""
        return {"batch": self._read % len(self), "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there.

        Raises:
            ValueError: The epoch had another number of batches.
        """
        if state["batch"] and state["batches"] != len(self):
            raise ValueError(
                f"the checkpoint was saved in the middle of an epoch of {state['batches']} batches, and here an epoch "
                f"has {len(self)}: go on with the data, batch size and number of processes of that run, or from a "
                "checkpoint of an epoch's end"
            )
        self._first = state["batch"]

    def __iter__(self) -> Any:
        first, self._first = self._first, 0
        self._read = first
        if isinstance(self.sampler, EpochSampler):
            self.sampler.start, first = first * (self.batch_size or 1), 0
        batches = super().__iter__()  # at once: with worker processes, it starts to read
        return self._counted(islice(batches, first, None))

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._read += 1
            yield batch


class StreamLoader(ResumableLoader):
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
