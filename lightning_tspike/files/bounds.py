"""What a file may ask for, checked before anything is built or computed from it, whoever made the file.

One place for networks' folders, checkpoints and the weights of the published code. Building a network within the size
of its weights is in :mod:`lightning_tspike.models.bounded`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = [
    "MOST_FOLDED_TIMESTEPS",
    "MOST_TENSORS",
    "MOST_TIMESTEPS",
    "MOST_VALUES",
    "check_frames",
    "check_label_names",
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
_LARGEST = 1 << 53  # every whole number up to it is also a float


def plain(value: object) -> Any:
    """A copy that is made of None, booleans, numbers, texts, lists and dicts with texts as keys alone.

    Tuples become lists. What holds itself, or one thing so often that it would be huge, is refused.

    Raises:
        ValueError: It has something else in it, or more than any file of a network has.
    """
    left = _MOST_ITEMS

    def copy(item: object, level: int) -> Any:
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
        raise ValueError(f"has {reprlib.repr(item)} in it, which is not a text or number of ordinary size")

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


def check_label_names(names: object, num_classes: int) -> list[str] | None:
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
        size: Of the file in bytes. A tensor can claim to be larger than what is stored of it.

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
            raise ValueError(f"has {reprlib.repr(name)} in it, which does not name an ordinary tensor")
        if tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"has {reprlib.repr(name)}, a tensor of {tensor.dtype} on {tensor.device}")
        numbers += tensor.numel()
    if numbers > size:
        raise ValueError(f"has tensors of {numbers} numbers in {size:.0f} bytes")
    return dict(tensors)
