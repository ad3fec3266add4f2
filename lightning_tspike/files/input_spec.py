"""What a network's input is: the typed form of ``preprocessing``, as datamodules, checkpoints and folders have it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, Literal

from .bounds import check_frames, plain

__all__ = ["FrameSlicing", "InputSpec", "SliceBy"]

SliceBy = Literal["time", "events"]

_INTERPOLATIONS = {"random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"}
_LARGEST_SIDE = 1 << 53  # every whole number up to it is also a float


@dataclass(frozen=True)
class FrameSlicing:
    """How a recording of an event camera becomes frames.

    Attributes:
        timesteps: Number of frames T.
        slice_by: ``"time"``: frames of equal duration; ``"events"``: frames of as many events each.
        sensor_size: Width, height and polarities of the sensor.
    """

    timesteps: int
    slice_by: SliceBy
    sensor_size: tuple[int, int, int]

    def __post_init__(self) -> None:
        _freeze_lists(self)
        if not _are_counts((self.timesteps,), 1) or not _are_counts(self.sensor_size, 3):
            raise ValueError(
                f"'frames' must have a number of timesteps and sensor_size [W, H, P], got {reprlib.repr(self)}"
            )
        if self.slice_by not in ("time", "events"):
            raise ValueError(f"'slice_by' must be 'time' or 'events', got {reprlib.repr(self.slice_by)}")


@dataclass(frozen=True)
class InputSpec:
    """What it takes to make a network's input from new images or recordings; what is None is not known.

    Lists that are given become tuples; in files they are lists (:meth:`to_dict`).

    Attributes:
        input_size: Channels, height and width [C, H, W] of an image or a frame, in pixels.
        mean: Of the pixels, scaled to [0, 1]; one number, or one for each channel. Of frames: of the counts of events.
        std: Likewise, above 0.
        interpolation: How images are resized, as timm calls it, e.g. ``"bilinear"``.
        crop_pct: Share of the resized image's side that is kept by the crop at its centre, in (0, 1].
        frames: How recordings become frames; None for images.
        others: What a datamodule of your own says beside these; it is kept as it is.

    Raises:
        ValueError: A value is of another kind or out of range, or asks for larger inputs than any network has
            (:mod:`lightning_tspike.files.bounds`); the message names it.
    """

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    frames: FrameSlicing | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _freeze_lists(self)
        size = self.input_size
        if size is not None and not _are_counts(size, 3):
            raise ValueError(f"'input_size' must be [C, H, W] in pixels, got {reprlib.repr(size)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if not isinstance(values, tuple) or not all(_is_number(value) for value in values):
                raise ValueError(f"{name!r} must be a list of numbers, got {reprlib.repr(values)}")
            if size is not None and len(values) not in (1, size[0]):
                raise ValueError(
                    f"{name!r} must have a number for each of {size[0]} channels, got {reprlib.repr(values)}"
                )
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"'std' must be positive, got {reprlib.repr(self.std)}")
        if self.crop_pct is not None and (not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1):
            raise ValueError(f"'crop_pct' must be a number in (0, 1], got {self.crop_pct!r}")
        mode = self.interpolation
        if mode is not None and (not isinstance(mode, str) or mode not in _INTERPOLATIONS):
            raise ValueError(f"'interpolation' must be one of {sorted(_INTERPOLATIONS)}, got {reprlib.repr(mode)}")
        channels, *sides = size or (1, 1, 1)
        check_frames([channels, *sides])
        # before it is cropped, a square image has the longer side both ways
        side = math.floor(min(max(sides) / (self.crop_pct or 1.0), _LARGEST_SIDE))
        check_frames([channels, side, side])
        if self.frames is not None:
            self._check_slicing(self.frames)

    def _check_slicing(self, frames: FrameSlicing) -> None:
        channels, *sides = self.input_size or (frames.sensor_size[2], 1, 1)
        if frames.sensor_size[2] != channels:
            raise ValueError(
                f"'sensor_size' must end with the {channels} polarities that are the channels of 'input_size', got "
                f"{reprlib.repr(frames.sensor_size)}"
            )
        check_frames([channels, *sides], frames.timesteps)
        check_frames(frames.sensor_size)

    @classmethod
    def of(cls, facts: InputSpec | Mapping[str, Any]) -> InputSpec:
        """Read ``preprocessing`` as a datamodule, a checkpoint or a ``config.json`` has it.

        Raises:
            ValueError: As for the class; or it is no dict, or holds what no file of a network can hold.
        """
        if isinstance(facts, InputSpec):
            return facts
        values = plain(facts)
        if not isinstance(values, dict):
            raise ValueError(f"'preprocessing' must have names and values, got {reprlib.repr(values)}")
        known = {name: values.pop(name) for name in _NAMES if name in values}
        if unknown := [name for name, value in known.items() if value is None]:
            raise ValueError(f"{unknown[0]!r} must be left out where it is not known, got None")
        if "frames" in known:
            known["frames"] = _slicing_of(known["frames"])
        return cls(**known, others=values)

    @property
    def is_complete(self) -> bool:
        """Whether ``input_size``, ``mean`` and ``std`` are known, without which no input can be made."""
        return None not in (self.input_size, self.mean, self.std)

    def complete(self) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
        """``input_size``, ``mean`` and ``std``.

        Raises:
            ValueError: One of them is not known; the message names it.
        """
        if self.input_size is None or self.mean is None or self.std is None:
            missing = [name for name in ("input_size", "mean", "std") if getattr(self, name) is None]
            raise ValueError(f"{missing} are not known")
        return self.input_size, self.mean, self.std

    def to_dict(self) -> dict[str, Any]:
        """What stands in files: what is known, as JSON can hold it."""
        known = {name: value for name in _NAMES if (value := getattr(self, name)) is not None}
        if self.frames is not None:
            known["frames"] = _thawed(vars(self.frames))
        return {**_thawed(known), **self.others}


_NAMES = [entry.name for entry in fields(InputSpec) if entry.name != "others"]


def _slicing_of(frames: object) -> FrameSlicing:
    expected = {entry.name for entry in fields(FrameSlicing)}
    if not isinstance(frames, dict) or frames.keys() != expected:
        raise ValueError(f"'frames' must have {sorted(expected)}, got {reprlib.repr(frames)}")
    return FrameSlicing(**frames)


def _freeze_lists(spec: FrameSlicing | InputSpec) -> None:
    for name, value in list(vars(spec).items()):
        if isinstance(value, list):
            object.__setattr__(spec, name, tuple(value))  # a frozen dataclass lets nothing else set it


def _thawed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _are_counts(values: Sequence[Any], length: int) -> bool:
    return isinstance(values, tuple) and len(values) == length and all(type(n) is int and n > 0 for n in values)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
