"""From a recording of events to T frames of counts, their cache on disk, and random augmentation of frames."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as vision

from .._waiting import counted
from ..files.input_spec import InputSpec, SliceBy
from .event_sources import Recordings, find_dataset

__all__ = ["CachedFrames", "FrameAugmentation", "Frames", "frames_transform"]


class Frames:
    """Source of frames: (counts int16 [T, P, H, W], label) by index, P polarities.

    Args:
        recordings: Events with fields x, y, t, p.
        sensor_size: Width, height and polarities of the sensor.
        timesteps: T.
        slice_by: ``"time"``: frames of equal duration; ``"events"``: frames of as many events each.
        size: Height and width of the frames: events are moved to the pixel that theirs falls into.
    """

    def __init__(
        self,
        recordings: Recordings,
        sensor_size: tuple[int, int, int],
        *,
        timesteps: int,
        slice_by: SliceBy,
        size: tuple[int, int],
    ) -> None:
        self.recordings = recordings
        self.to_frames = ToFrames(sensor_size, timesteps, slice_by, size)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        events, label = self.recordings[index]
        return self.to_frames(events), label

    def filename(self, index: int) -> str:
        return self.recordings.filename(index)


class ToFrames:
    """Events (an array with fields x, y, t, p) to counts int16 [T, P, H, W]; the arguments are those of Frames.

    Raises:
        ValueError: In a call: too few events, or some outside the sensor.
    """

    def __init__(
        self, sensor_size: tuple[int, int, int], timesteps: int, slice_by: SliceBy, size: tuple[int, int]
    ) -> None:
        from tonic import transforms

        self.sensor_size, self.timesteps = sensor_size, timesteps
        width, height, polarities = sensor_size
        target = (size[1], size[0])
        bins = {"n_time_bins": timesteps} if slice_by == "time" else {"n_event_bins": timesteps}
        steps: list[Any] = [transforms.ToFrame(sensor_size=(*target, polarities), **bins)]
        if target != (width, height):
            steps.insert(0, transforms.Downsample(sensor_size=sensor_size, target_size=target))
        self.steps = transforms.Compose(steps)

    def __call__(self, events: Any) -> np.ndarray:
        self._check(events)
        return self.steps(events)

    def _check(self, events: Any) -> None:
        # tonic counts a negative coordinate from the other edge, and divides no events into no frames
        if len(events) < self.timesteps:
            raise ValueError(f"{len(events)} events are too few for {self.timesteps} frames")
        for field, limit in zip(("x", "y", "p"), self.sensor_size, strict=True):
            low, high = int(events[field].min()), int(events[field].max())
            if low < 0 or high >= limit:
                raise ValueError(
                    f"events outside the sensor: {field} runs from {low} to {high}, expected 0 to {limit - 1}"
                )


def frames_transform(spec: InputSpec) -> Callable[[Any], Tensor]:
    """From events to a network's input: float32 [T, P, H, W].

    Args:
        spec: With ``frames``.

    Raises:
        ValueError: It does not say how recordings become frames, or how large these are.
        ModuleNotFoundError: tonic is not installed.
    """
    frames, (_, height, width) = spec.frames, spec.complete()[0]
    if frames is None:
        raise ValueError("['frames'] are not known")
    find_dataset("NMNIST")  # says which extra is missing
    to_frames = ToFrames(frames.sensor_size, frames.timesteps, frames.slice_by, (height, width))
    return lambda events: torch.from_numpy(to_frames(events)).float()


class CachedFrames:
    """Frames that tonic's DiskCachedDataset keeps on disk, made once before the first is read.

    The folder is filled under another name and then renamed: a run that was killed leaves no half-filled cache. Of
    several runs that begin together one fills it, and the others wait. Its name holds what the frames depend on, so a
    change of files or options makes a new one.

    Args:
        frames: Their source.
        folder: Of the cache.
        num_workers: Processes that fill it.
    """

    def __init__(self, frames: Frames, folder: Path, *, num_workers: int = 0) -> None:
        from tonic import DiskCachedDataset

        self.recordings = frames.recordings
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not folder.is_dir():  # another process may have filled it meanwhile
                    _fill(frames, folder, num_workers)
        self.cached = DiskCachedDataset(frames, cache_path=str(folder))

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.cached[index]

    def filename(self, index: int) -> str:
        return self.recordings.filename(index)


def _fill(frames: Frames, folder: Path, num_workers: int) -> None:
    from tonic import DiskCachedDataset

    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    loader = DataLoader(
        _Touch(DiskCachedDataset(frames, cache_path=str(scratch))), batch_size=None, num_workers=num_workers
    )
    for _ in counted(loader, f"writing frames to {folder.name}", unit="recordings"):
        pass
    scratch.rename(folder)


class _Touch(Dataset[int]):
    """Reads a cached sample, so that it is on disk, and gives nothing back."""

    def __init__(self, cached: Any) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, index: int) -> int:
        try:
            self.cached[index]
        except Exception:  # a recording that cannot be read has no frames; reading it in training says so
            return 0
        return 1


class FrameAugmentation:
    """Counts to float32 [T, P, H, W], changed at random, all frames of a recording alike.

    Args:
        hflip: Probability of mirroring left and right.
        roll: Shift by up to so many pixels up or down, left or right; what leaves at one edge comes in at the other.
        nda: One more of shifting (up to 5 pixels), rotating (up to 15 degrees), shearing (up to 15 degrees) and a
            square hole (up to a quarter of the side): the kinds of Neuromorphic Data Augmentation (Li et al., ECCV
            2022, arXiv 2203.06145).

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, *, hflip: float = 0.0, roll: int = 0, nda: bool = False) -> None:
        if not 0 <= hflip <= 1:
            raise ValueError(f"hflip is a probability, got {hflip!r}")
        if roll < 0:
            raise ValueError(f"roll must not be negative, got {roll!r}")
        self.hflip, self.roll, self.nda = hflip, roll, nda

    def __call__(self, frames: np.ndarray) -> Tensor:
        x = torch.from_numpy(frames).float()
        if self.hflip and torch.rand(()) < self.hflip:
            x = x.flip(-1)
        if self.roll:
            x = _roll(x, self.roll)
        if self.nda:
            x = (_roll_5, _rotate, _shear, _hole)[int(torch.randint(4, ()))](x)
        return x


def _roll(x: Tensor, pixels: int) -> Tensor:
    down, right = torch.randint(-pixels, pixels + 1, (2,)).tolist()
    return x.roll((down, right), (-2, -1))


def _roll_5(x: Tensor) -> Tensor:
    return _roll(x, 5)


def _rotate(x: Tensor) -> Tensor:
    return vision.rotate(x, _degrees())


def _shear(x: Tensor) -> Tensor:
    return vision.affine(x, angle=0.0, translate=[0, 0], scale=1.0, shear=[_degrees(), 0.0])


def _hole(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    side = int(torch.randint(1, max(2, min(height, width) // 4 + 1), ()))
    top, left = (int(torch.randint(limit - side + 1, ())) for limit in (height, width))
    x = x.clone()
    x[..., top : top + side, left : left + side] = 0
    return x


def _degrees() -> float:
    return float(torch.empty(()).uniform_(-15, 15))
