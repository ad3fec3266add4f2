"""Options of the datamodules: each is declared, described and checked here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .samples import OnError

__all__ = ["EventAugmentation", "EventLoading", "ImageAugmentation", "ImageForm", "ImageSplits", "Loading"]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How samples are read.

    Attributes:
        batch_size: Samples per batch on each device.
        num_workers: Loader processes on each device; 0 loads in the training process.
        on_error: What to do about a sample that cannot be read or has no valid label: ``"raise"``, or ``"skip"``: leave
            it out of its batch, warn, and say at the end how many there were.

    Raises:
        ValueError: One of them is out of range.
    """

    batch_size: int = 128
    num_workers: int = 0
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size!r}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers!r}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """Which images are for what.

    Attributes:
        train_split: Name of the training split, where it differs from the table (``folder``, ``npz``, ``hfds/``,
            ``hfids/``, ``wds/``; for ``wds/`` it can be ``"train-{000..099}.tar|IMAGES"``).
        val_split: Name of the validation split.
        test_split: Name of the test split.
        val_images: Training images held out for validation where there is no validation split.
    """

    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    val_images: int = 5000


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """What the network gets of an image.

    Attributes:
        image_size: Height and width in pixels; by default the images' own, or 224 where they have none.
        crop_pct: Share of the shorter side that the centre crop of the evaluation keeps; by default 0.875 of images
            that are resized, all of others.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        mean: Of each channel, in [0, 1]. By default known for torchvision's datasets, computed from the training images
            of an npz file, and timm's for ImageNet otherwise.
        std: Standard deviation, likewise.
    """

    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """How training images are changed at random.

    Attributes:
        crop_padding: Crop training images from a copy with so many pixels around. By default 4 pixels for CIFAR, 2 for
            MNIST and Fashion-MNIST, an eighth of the side for npz; others are cropped and resized at random.
        crop_fill: What these pixels are: ``"black"``, or what is inside, mirrored (``"reflect"``).
        hflip: Probability of mirroring a training image; by default 0.5, and 0 for MNIST.
        alternate_hflip: Mirror every other image in one epoch and the others in the next, instead of at random: each
            image is seen both ways as often (Jordan 2024, arXiv 2404.00498).
        auto_augment: A policy, see :func:`lightning_tspike.data.image_transforms.training_transform`.
        random_erasing: Probability of a hole of random size.
        cutout: Side of a square hole in pixels.
        mixup: Parameter alpha of mixup; 0 for none.
        cutmix: Parameter alpha of cutmix; 0 for none. With both, each batch gets one of them.
    """

    crop_padding: int | None = None
    crop_fill: Literal["black", "reflect"] = "black"
    hflip: float | None = None
    alternate_hflip: bool = False
    auto_augment: str | None = None
    random_erasing: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_fill not in ("black", "reflect"):
            raise ValueError(f"crop_fill must be 'black' or 'reflect', got {self.crop_fill!r}")
        if self.alternate_hflip and self.hflip is not None:
            raise ValueError(
                f"alternate_hflip mirrors by epoch, not with the probability hflip={self.hflip!r}: leave one"
            )


@dataclass(frozen=True, kw_only=True)
class EventLoading(Loading):
    """How recordings are read; frames of T time steps are larger than an image, so fewer are in a batch.

    Attributes:
        batch_size: Recordings per batch on each device.
    """

    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class EventAugmentation:
    """How training frames are changed at random, all frames of a recording alike.

    Attributes:
        hflip: Probability of mirroring them.
        roll: Shift them by up to so many pixels, rolling over.
        nda: Geometric augmentation, see :class:`lightning_tspike.data.event_frames.FrameAugmentation`.
    """

    hflip: float = 0.0
    roll: int = 0
    nda: bool = False
