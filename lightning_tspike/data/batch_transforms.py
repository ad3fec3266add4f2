"""Transforms of whole batches of small images in memory: what :mod:`.image_transforms` does to one, in less time.

Image by image, Python and PIL take longer for 32x32 pixels than a small network does for its training step. These take
only what is done to most small images: a crop from a padded copy, a mirror, the normalisation, a hole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..files.input_spec import InputSpec
from .image_transforms import CROP_PCT

__all__ = ["BatchTransform", "evaluation_batches", "in_hole", "mirrored_inside", "training_batches"]

BatchTransform: TypeAlias = Callable[[Tensor], Tensor]
"""From pixels, uint8 [B, H, W, C], to the network's input, [B, C, H, W]."""


def evaluation_batches(spec: InputSpec, size: tuple[int, int]) -> BatchTransform | None:
    """As :func:`.image_transforms.evaluation_transform`, bit for bit.

    Args:
        spec: Of the network's input.
        size: Height and width of the images.

    Returns:
        The transform; None where images would be resized, which is done one by one.
    """
    (_, *wanted), mean, std = spec.complete()
    if tuple(wanted) != size or (spec.crop_pct or CROP_PCT) != 1:
        return None

    def normalized(pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return x.sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))

    return normalized


def training_batches(
    spec: InputSpec,
    size: tuple[int, int],
    *,
    crop_padding: int | None,
    crop_fill: str,
    hflip: float,
    cutout: int,
    **others: Any,
) -> BatchTransform | None:
    """As :func:`.image_transforms.training_transform`, with other random numbers.

    Args:
        spec: Of the network's input.
        size: Height and width of the images.
        crop_padding: As there.
        crop_fill: As there.
        hflip: As there.
        cutout: As there.
        others: Options that are asked for image by image alone.

    Returns:
        The transform; None where images would be resized, the padding is as large as they are, or ``others`` has
        anything that is not empty or 0.
    """
    normalized = evaluation_batches(InputSpec(spec.input_size, spec.mean, spec.std), size)
    if normalized is None or crop_padding is None or crop_padding >= min(size) or any(others.values()):
        return None

    def augmented(pixels: Tensor) -> Tensor:
        count = len(pixels)
        rows, columns = (
            torch.arange(side) + torch.randint(-crop_padding, crop_padding + 1, (count, 1)) for side in size
        )
        columns = torch.where(torch.rand(count, 1) < hflip, columns.flip(1), columns)
        from_rows, from_columns = (
            mirrored_inside(places, side) for places, side in zip((rows, columns), size, strict=True)
        )
        pixels = pixels[torch.arange(count)[:, None, None], from_rows[:, :, None], from_columns[:, None, :]]
        if crop_fill != "reflect":
            pixels = pixels * ((from_rows == rows)[:, :, None, None] & (from_columns == columns)[:, None, :, None])
        x = normalized(pixels)
        if cutout:
            rows, columns = (in_hole(torch.randint(side, (count, 1)), side, cutout) for side in size)
            x.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)
        return x

    return augmented


def mirrored_inside(places: Tensor, side: int) -> Tensor:
    """Rows or columns of the image for places around it, mirrored at its rim: -1 is 1, and ``side`` is ``side - 2``."""
    return side - 1 - (side - 1 - places.abs()).abs()


def in_hole(centers: Tensor, side: int, cutout: int) -> Tensor:
    """Which rows or columns are in holes of ``cutout`` pixels, those with their centers at [B, 1]: bool [B, side]."""
    distance = torch.arange(side, device=centers.device) - centers + cutout // 2
    return (distance >= 0) & (distance < cutout)
