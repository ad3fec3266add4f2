"""What a file may ask for, checked before anything is built or computed from it, whoever made the file.

One place for networks' folders, checkpoints and the weights of the published code. Building a network within the size
of its weights is in :mod:`lightning_tspike.models.bounded`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

__all__ = [
    "MOST_FOLDED_TIMESTEPS",
    "MOST_TENSORS",
    "MOST_TIMESTEPS",
    "MOST_VALUES",
    "check_frames",
    "check_label_names",
    "check_preprocessing",
    "check_tensors",
    "plain",
]

MOST_TENSORS = 10_000
"""In one network; timm's largest has about 3,000."""

MOST_TIMESTEPS = 4096

MOST_FOLDED_TIMESTEPS = 256
"""Of a checkpoint that is folded, and so run, as it is loaded: about 1 GB for a small network."""

MOST_VALUES = 1 << 25
"""In an image, and in a sequence of frames: 33.6 million, 222 frames of 3 x 224 x 224."""

_MOST_ITEMS = 100_000  # the names of ImageNet's 22k classes are far fewer
_MOST_LEVELS = 16
_MOST_LETTERS = 10_000  # in one text
_LARGEST = 1 << 53  # every whole number up to it is a float, too
_INTERPOLATIONS = {"random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"}


def plain(value: Any) -> Any:
    """A copy that is made of None, booleans, numbers, texts, lists and dicts with texts as keys alone.

    Tuples become lists. What holds itself, or one thing so often that it would be huge, is refused.

    Raises:
        ValueError: It has something else in it, or more than any file of a network has.
    """
    left = _MOST_ITEMS

    def copy(item: Any, level: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or level > _MOST_LEVELS:
            raise ValueError(f"has more than {_MOST_ITEMS} entries or {_MOST_LEVELS} levels")
        if item is None or type(item) in (bool, float):
            return item
        if type(item) is int and -_LARGEST <= item <= _LARGEST:
            return item
        if type(item) is str and len(item) <= _MOST_LETTERS:
            return item
        if isinstance(item, (list, tuple)):
            return [copy(inner, level + 1) for inner in item]
        if isinstance(item, Mapping) and all(type(key) is str for key in item):
            return {copy(key, level + 1): copy(inner, level + 1) for key, inner in item.items()}
        raise ValueError(f"has {reprlib.repr(item)} in it, which is no text or number of a usual size")

    return copy(value, 0)


def check_frames(size: Sequence[int], timesteps: int = 1) -> None:
    """Refuse more time steps, or larger images or sequences, than any network has been made for.

    Args:
        size: Of an image or a frame, [C, H, W].
        timesteps: T.

    Raises:
        ValueError: So it is.
    """
    if timesteps > MOST_TIMESTEPS:
        raise ValueError(f"has {timesteps} timesteps, no network has more than {MOST_TIMESTEPS}")
    if timesteps * math.prod(size) > MOST_VALUES:
        raise ValueError(
            f"asks for inputs of {' x '.join(map(str, [timesteps, *size]))} values (T x C x H x W), more than the "
            f"{MOST_VALUES} that are computed for a file that anyone may have made"
        )


def check_preprocessing(preprocessing: Any) -> dict[str, Any]:
    """Check what a file says of a network's input.

    Args:
        preprocessing: As ``config.json`` has it (:mod:`lightning_tspike.store.manifest`), or None.

    Returns:
        A plain copy, empty for None.

    Raises:
        ValueError: An entry is of another kind or out of range; the message names it.
    """
    facts = plain(preprocessing if preprocessing is not None else {})
    if not isinstance(facts, dict):
        raise ValueError(f"'preprocessing' must have names and values, got {reprlib.repr(facts)}")
    size = facts.get("input_size", [1, 1, 1])
    if not _are_counts(size, 3):
        raise ValueError(f"'input_size' must be [C, H, W] in pixels, got {reprlib.repr(size)}")
    for key in ("mean", "std"):
        values = facts.get(key, [1.0])
        if not isinstance(values, list) or not all(_is_number(v) for v in values):
            raise ValueError(f"{key!r} must be a list of numbers, got {reprlib.repr(values)}")
        if "input_size" in facts and len(values) not in (1, size[0]):
            raise ValueError(f"{key!r} must have a number for each of {size[0]} channels, got {reprlib.repr(values)}")
    if not all(value > 0 for value in facts.get("std", [])):
        raise ValueError(f"'std' must be positive, got {reprlib.repr(facts['std'])}")
    crop = facts.get("crop_pct", 1.0)
    if not _is_number(crop) or not 0 < crop <= 1:
        raise ValueError(f"'crop_pct' must be a number in (0, 1], got {crop!r}")
    mode = facts.get("interpolation", "bilinear")
    if not isinstance(mode, str) or mode not in _INTERPOLATIONS:
        raise ValueError(f"'interpolation' must be one of {sorted(_INTERPOLATIONS)}, got {reprlib.repr(mode)}")
    check_frames(size)
    # before it is cropped, a square image has the longer side both ways
    check_frames([size[0], *[math.floor(min(max(size[1:]) / crop, _LARGEST))] * 2])
    if "frames" in facts:
        _check_slicing(facts["frames"], size)
    return facts


def _check_slicing(frames: Any, size: Sequence[int]) -> None:
    expected = {"timesteps", "slice_by", "sensor_size"}
    if not isinstance(frames, dict) or frames.keys() != expected:
        raise ValueError(f"'frames' must have {sorted(expected)}, got {reprlib.repr(frames)}")
    if not _are_counts([frames["timesteps"]], 1) or not _are_counts(frames["sensor_size"], 3):
        raise ValueError(
            f"'frames' must have a number of timesteps and sensor_size [W, H, P], got {reprlib.repr(frames)}"
        )
    if frames["slice_by"] not in ("time", "events"):
        raise ValueError(f"'slice_by' must be 'time' or 'events', got {reprlib.repr(frames['slice_by'])}")
    if frames["sensor_size"][2] != size[0]:
        raise ValueError(
            f"'sensor_size' must end with the {size[0]} polarities that are the channels of 'input_size', got "
            f"{reprlib.repr(frames['sensor_size'])}"
        )
    check_frames(size, frames["timesteps"])
    check_frames(frames["sensor_size"])


def check_label_names(names: Any, num_classes: int) -> list[str] | None:
    """Check the names of the K classes, where they are known.

    Raises:
        ValueError: They are not K texts.
    """
    if names is None:
        return None
    names = plain(names)
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'label_names' must be {num_classes} texts, one for each class")
    return names


def check_tensors(tensors: Mapping[Any, Any], size: float) -> dict[str, Tensor]:
    """Check that names and tensors are what a file of this size can hold.

    Args:
        tensors: Names and tensors, on the CPU.
        size: Of the file in bytes. A tensor can say that it is larger than what is stored of it.

    Returns:
        The same.

    Raises:
        ValueError: Something is no ordinary tensor, or they are too many or too large.
    """
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"has {len(tensors)} tensors, no network has more than {MOST_TENSORS}")
    numbers = 0
    for name, tensor in tensors.items():
        # a tensor of another layout, or on no device, has no numbers that could be looked at
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or str(tensor.layout) != "torch.strided":
            raise ValueError(f"has {reprlib.repr(name)} in it, which is no name of an ordinary tensor")
        if tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"has {reprlib.repr(name)}, a tensor of {tensor.dtype} on {tensor.device}")
        numbers += tensor.numel()
    if numbers > size:
        raise ValueError(f"has tensors of {numbers} numbers in {size:.0f} bytes")
    return dict(tensors)


def _are_counts(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(n) is int and n > 0 for n in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
