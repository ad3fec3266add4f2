"""Recordings of event cameras as frames, by tonic: N-MNIST, CIFAR10-DVS, DVS128 Gesture and others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._options import options_of, save_options, takes
from ..files.input_spec import FrameSlicing, InputSpec, SliceBy
from .base import ClassificationDataModule
from .event_frames import CachedFrames, FrameAugmentation, Frames
from .event_sources import Recordings, find_dataset, open_recordings, split_last
from .options import EventAugmentation, EventLoading
from .samples import Samples

__all__ = ["EventDataModule"]

_TEST_SHARE = 0.1


@takes(EventAugmentation, EventLoading)
class EventDataModule(ClassificationDataModule):
    """Event recordings as T frames, batches [B, T, P, H, W]: each pixel counts its events, one channel per polarity.

    The splits are fixed. Of a dataset without a test split, such as CIFAR10-DVS, the last tenth of every class's
    recordings, by the numbers in their names, is for testing (9:1 per class: 9,000 and 1,000 recordings). From what is
    for training, the last ``val_share`` of every class's recordings is held out for validation.

    Args:
        dataset: A class of ``tonic.datasets``, such as ``"NMNIST"``, ``"CIFAR10DVS"``, ``"DVSGesture"``, or the path of
            one of your own, such as ``"mypackage.MyEvents"``. Its recordings must have x, y, t and p.
        root: Folder of the files; tonic keeps each dataset in a folder of its name below.
        timesteps: Number of frames T.
        slice_by: ``"time"``: frames of equal duration; ``"events"``: frames of as many events each.
        size: Height and width of the frames, no more than the sensor's; by default the sensor's.
        sensor_size: Width, height and polarities, for datasets whose class does not have it.
        val_share: Share of the training recordings held out for validation. 0 validates on the test recordings, as is
            usual in the field: mind that a checkpoint chosen by them is tested on the recordings that chose it.
        cache: Where frames are kept once they are made, a folder below ``root`` or an absolute path; None makes them
            again each time they are read.
        download: Let tonic fetch and unpack what is not there.
        options: Those of EventAugmentation and EventLoading.

    Raises:
        ModuleNotFoundError: tonic is not installed.
        ValueError: An option is unknown or out of range, or the recordings are no camera's.
        FileNotFoundError: There are no recordings; the message says where they are expected.
    """

    def __init__(
        self,
        dataset: str = "NMNIST",
        root: str = "data",
        timesteps: int = 4,
        slice_by: SliceBy = "time",
        size: int | None = None,
        sensor_size: Sequence[int] | None = None,
        val_share: float = 0.1,
        cache: str | None = "frames",
        download: bool = False,
        **options: Any,
    ) -> None:
        augmentation = EventAugmentation(**options_of(EventAugmentation, options))
        loading = EventLoading(**options)
        ClassificationDataModule.__init__(self, **vars(loading))  # not by super(), see save_options
        if timesteps < 1:
            raise ValueError(f"timesteps must be at least 1, got {timesteps!r}")
        if slice_by not in ("time", "events"):
            raise ValueError(f"slice_by must be 'time' or 'events', got {slice_by!r}")
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share must lie in [0, 1), got {val_share!r}")
        self.kind = find_dataset(dataset)
        self.sensor_size = _check_sensor(sensor_size or getattr(self.kind, "sensor_size", None), dataset)
        width, height, polarities = self.sensor_size
        if size is not None and not 1 <= size <= min(width, height):
            raise ValueError(f"size must lie between 1 and {min(width, height)}, the sensor's, got {size!r}")
        self.augmentation = FrameAugmentation(hflip=augmentation.hflip, roll=augmentation.roll, nda=augmentation.nda)
        self.options: dict[str, Any] = {
            "dataset": dataset,
            "root": root,
            "timesteps": timesteps,
            "slice_by": slice_by,
            "size": size,
            "sensor_size": sensor_size,
            "val_share": val_share,
            "cache": cache,
            "download": download,
            **vars(augmentation),
            **vars(loading),
        }
        save_options(self, self.options)
        self.size = (size or height, size or width)
        self.preprocessing = InputSpec(
            input_size=(polarities, *self.size),
            mean=(0.0,) * polarities,
            std=(1.0,) * polarities,
            frames=FrameSlicing(timesteps, slice_by, self.sensor_size),
        ).to_dict()

    def prepare_data(self) -> None:
        """Fetch the files if asked to, and make the frames, once per machine."""
        self._sources(download=self.options["download"])

    def setup(self, stage: str) -> None:
        train, test = self._sources(download=False)
        recordings: Recordings = train.recordings
        self.class_names = recordings.class_names
        self.num_classes = len(recordings.labels)
        self._set_up_mixing(self.options["mixup"], self.options["cutmix"])
        indices: Sequence[int] = range(len(train))
        if test is None:
            test, (indices, tested) = train, split_last(recordings.targets, _TEST_SHARE)
        else:
            tested = list(range(len(test)))
        validated = None
        if share := self.options["val_share"]:
            kept, held_out = split_last([recordings.targets[i] for i in indices], share)
            indices, validated = [indices[i] for i in kept], [indices[i] for i in held_out]
        self.train_set = self._samples(train, self.augmentation, indices)
        self.test_set = self._samples(test, _plain, tested)
        self.val_set = self.test_set if validated is None else self._samples(train, _plain, validated)

    def _sources(self, *, download: bool) -> tuple[Any, Any]:
        """Training and test frames, the latter None where the dataset has no split of its own."""
        train, test = open_recordings(self.kind, self.options["root"], download=download)
        return self._frames(train, "train"), None if test is None else self._frames(test, "test")

    def _frames(self, recordings: Recordings, split: str) -> Any:
        options = self.options
        frames = Frames(
            recordings,
            self.sensor_size,
            timesteps=options["timesteps"],
            slice_by=options["slice_by"],
            size=self.size,
        )
        if options["cache"] is None:
            return frames
        key = hashlib.sha256(f"{recordings.fingerprint()} {self.sensor_size}".encode()).hexdigest()[:12]
        height, width = self.size
        name = f"{self.kind.__name__}-{split}-T{options['timesteps']}-{options['slice_by']}-{height}x{width}-{key}"
        folder = Path(options["root"]).expanduser() / options["cache"] / name
        return CachedFrames(frames, folder, num_workers=self.num_workers)

    def _samples(self, source: Any, transform: Any, indices: Sequence[int]) -> Samples:
        return Samples(source, transform, num_classes=self.num_classes, indices=indices, on_error=self.on_error)


def _plain(frames: Any) -> Tensor:
    return torch.from_numpy(frames).float()


def _check_sensor(sensor_size: Any, dataset: str) -> tuple[int, int, int]:
    try:
        width, height, polarities = (int(n) for n in sensor_size)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{dataset} does not say how large its sensor is: set sensor_size to [width, height, polarities]"
        ) from error
    if min(width, height, polarities) < 1:
        raise ValueError(f"sensor_size must be [width, height, polarities], each at least 1, got {sensor_size!r}")
    return width, height, polarities
