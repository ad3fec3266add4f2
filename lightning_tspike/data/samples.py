"""Reading samples one by one: what cannot be read is named and either ends the run or is left out, and counted."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from .._seeding import seed_all

__all__ = ["DataError", "OnError", "Samples", "Stream", "collate_readable", "sample_name"]

OnError = Literal["raise", "skip"]
Sample = tuple[Tensor, int]


class DataError(RuntimeError):
    """A sample cannot be read, or is not what it should be; the message names it and the way out."""


class Samples(Dataset[Any]):
    """Some samples of a source, each made ready by a transform when it is asked for.

    Args:
        source: Gives ``(raw, label)`` by index; its ``filename(index)``, where it has one, names a sample.
        indices: Which of its samples, in which order; None for all.
        transform: Makes the raw image or recording the tensor that the network gets.
        num_classes: Labels must lie in [0, num_classes).
        batch_transform: Does the same to a batch of pixels, uint8 [B, H, W, C], where the source has them in memory:
            its ``pixels(indices)`` gives them and their labels [B]. None: samples are made ready one by one.
        on_error: ``"raise"`` a DataError that names the sample, or ``"skip"``: the sample is None, which
            :func:`collate_readable` leaves out of its batch, and :attr:`unreadable` knows it.

    Attributes:
        epoch: The epoch that is read; the loader's sampler sets it.
        seed: Set by the sampler as well: in a loader's worker process, the random numbers of a batch depend on it, the
            epoch and the batch's first sample alone, not on what the process has read before. None: not set.
        mirrors_by_epoch: Whether every other image [C, H, W] is mirrored, and in the next epoch the others.
    """

    epoch = 0
    seed: int | None = None
    mirrors_by_epoch = False

    def __init__(
        self,
        source: Any,
        transform: Callable[[Any], Tensor],
        *,
        num_classes: int,
        indices: Sequence[int] | None = None,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.source, self.transform, self.num_classes, self.on_error = source, transform, num_classes, on_error
        self.batch_transform = batch_transform
        self.indices = range(len(source)) if indices is None else indices
        # in shared memory, so that what a loader's worker process finds is known to all
        self._bad = torch.zeros(len(self.indices), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            return self.read(index)
        except DataError as error:
            if self.on_error == "raise":
                raise
            if not self._bad[index]:
                self._bad[index] = True
                warnings.warn(f"left out: {error}", stacklevel=2)
            return None

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        """The samples of a batch, as torch's loader asks for them."""
        if self.seed is not None and get_worker_info() is not None:
            seed_all(self.seed, self.epoch, indices[0], 0, 1)  # none of the streams of the training steps
        if self.batch_transform is None:
            return [self[index] for index in indices]
        numbers = [self.indices[index] for index in indices]
        pixels, labels = self.source.pixels(numbers)
        if not all(0 <= label < self.num_classes for label in labels):
            return [self[index] for index in indices]  # which says what is wrong with which sample
        x = self.batch_transform(pixels)
        if self.mirrors_by_epoch:
            is_mirrored = (torch.tensor(numbers) + self.epoch) % 2 == 1
            x = torch.where(is_mirrored[:, None, None, None], x.flip(-1), x)
        return list(zip(x, labels, strict=True))

    def read(self, index: int) -> Sample:
        """One sample.

        Raises:
            DataError: It cannot be read, or its label is out of range.
        """
        number = self.indices[index]
        try:
            raw, label = self.source[number]
            x = self.transform(raw)
            if self.mirrors_by_epoch and (number + self.epoch) % 2:
                x = x.flip(-1)
        except Exception as error:  # image and event files raise anything, from OSError to struct.error
            raise DataError(
                f"{sample_name(self.source, number)} cannot be read: {type(error).__name__}: {error}; repair or remove "
                "it, or leave such samples out with on_error='skip'"
            ) from error
        check_label(label, self.num_classes, sample_name(self.source, number))
        return x, int(label)

    @property
    def unreadable(self) -> list[str]:
        """Names of the samples that were left out so far."""
        return [sample_name(self.source, self.indices[i]) for i in self._bad.nonzero().flatten().tolist()]


class Stream(IterableDataset[Any]):
    """A dataset of timm that is read from front to back: each image made ready by a transform, each label checked.

    Args:
        source: timm's IterableImageDataset: gives (image, label), shares its samples out between processes and workers
            by itself, and shuffles by epoch.
        num_classes: Labels must lie in [0, num_classes).
    """

    def __init__(self, source: Any, transform: Callable[[Any], Tensor], *, num_classes: int) -> None:
        self.source, self.transform, self.num_classes = source, transform, num_classes

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Sample]:
        for number, (image, label) in enumerate(self.source):
            check_label(label, self.num_classes, f"image {number} of the stream")
            yield self.transform(image), int(label)


def check_label(label: Any, num_classes: int, name: str) -> None:
    """Refuse labels out of range: a network would learn something else from them, or fail far from here.

    Raises:
        DataError: The label is not a whole number in [0, num_classes).
    """
    try:
        number = operator.index(label)
    except TypeError:  # text, or a number with a fraction
        number = -1
    if not 0 <= number < num_classes:
        raise DataError(f"{name} has the label {label}, expected a whole number from 0 to {num_classes - 1}")


def sample_name(source: object, index: int) -> str:
    """The file that a sample comes from, or its number where it has none of its own."""
    if callable(filename := getattr(source, "filename", None)):
        return str(filename(index))
    return f"sample {index} of {type(source).__name__}"


def collate_readable(samples: Sequence[Sample | None]) -> Any:
    """Torch's ``default_collate`` of the samples that could be read.

    Raises:
        DataError: None of them could.
    """
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        raise DataError(f"none of the {len(samples)} samples of a batch could be read; the warnings above name them")
    return default_collate(readable)
