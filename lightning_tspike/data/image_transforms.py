"""From a PIL image to the tensor that a network gets, with random augmentation or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import create_transform
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from ..files.input_spec import InputSpec
from .samples import collate_readable

__all__ = [
    "CROP_PCT", "INTERPOLATION", "MODES", "Cutout", "Mixing", "any_image_transform", "evaluation_transform",
    "training_transform",
]  # fmt: skip

INTERPOLATION = "bilinear"
"""How images are resized where a specification does not say."""
CROP_PCT = 1.0
"""Share of the resized image's side that is kept where a specification does not say: all of it."""
MODES = {1: "L", 3: "RGB"}
"""PIL's mode of an image by its number of channels."""


def evaluation_transform(spec: InputSpec) -> Callable[[Any], Tensor]:
    """Timm's standard transform for evaluation: resize, crop at the centre, scale to [0, 1], normalise.

    Args:
        spec: Of the images; resized bilinearly and not cropped where it says nothing of that.

    Returns:
        A function from a PIL image to a tensor [C, H, W].

    Raises:
        ValueError: Its ``input_size``, ``mean`` or ``std`` is not known.
    """
    input_size, mean, std = spec.complete()
    return create_transform(
        input_size,
        interpolation=spec.interpolation or INTERPOLATION,
        mean=mean,
        std=std,
        crop_pct=spec.crop_pct or CROP_PCT,
    )


def any_image_transform(spec: InputSpec) -> Callable[[Any], Tensor]:
    """As :func:`evaluation_transform`, of images in whatever mode (grey, RGB, with a palette, with transparency)."""
    evaluate = evaluation_transform(spec)
    mode = MODES.get(spec.complete()[0][0])
    return evaluate if mode is None else lambda image: evaluate(image.convert(mode))


def training_transform(
    spec: InputSpec,
    *,
    crop_padding: int | None = None,
    crop_fill: str = "black",
    hflip: float = 0.5,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    cutout: int = 0,
) -> Callable[[Any], Tensor]:
    """Random crop, mirror, policy, then as in evaluation, then holes.

    Args:
        spec: As for :func:`evaluation_transform`.
        crop_padding: Crop the image of its full size from a copy with so many pixels around; None crops and resizes at
            random, as is usual for ImageNet.
        crop_fill: What these pixels are: ``"black"`` or ``"reflect"``.
        hflip: Probability of mirroring left and right.
        auto_augment: ``"cifar10"``, ``"imagenet"`` or ``"svhn"``: a learned policy (AutoAugment, arXiv 1805.09501) by
            torchvision; or what timm knows, such as ``"rand-m9-mstd0.5"`` (RandAugment), ``"augmix-m3"``, ``"3a"``.
        random_erasing: Probability of a rectangular hole of random size (arXiv 1708.04896).
        cutout: Side of a square hole in pixels (arXiv 1708.04552); 0 for none.

    Raises:
        ValueError: An option is not known or out of range.
    """
    (_, *size), mean, std = spec.complete()
    if not 0 <= hflip <= 1 or not 0 <= random_erasing <= 1:
        raise ValueError(f"hflip and random_erasing are probabilities, got {hflip!r} and {random_erasing!r}")
    if cutout < 0 or (crop_padding is not None and crop_padding < 0):
        raise ValueError(f"cutout and crop_padding must not be negative, got {cutout!r} and {crop_padding!r}")
    # on PIL images, torchvision's first transforms take less time than those of v2 (benchmarks/data_loading.py)
    steps: list[Any] = [
        RandomResizedCropAndInterpolation(size, interpolation=spec.interpolation or INTERPOLATION)
        if crop_padding is None
        else transforms.RandomCrop(
            size, padding=crop_padding or None, padding_mode="reflect" if crop_fill == "reflect" else "constant"
        )
    ]
    if hflip:
        steps.append(transforms.RandomHorizontalFlip(hflip))
    if auto_augment:
        steps.append(_policy(auto_augment, size, mean))
    steps += [
        transforms.ToTensor(),
        transforms.Normalize(mean, std, inplace=True),
    ]
    if random_erasing:
        steps.append(RandomErasing(random_erasing, device="cpu"))
    if cutout:
        steps.append(Cutout(cutout))
    return transforms.Compose(steps)


def _policy(name: str, size: Sequence[int], mean: Sequence[float]) -> Callable[[Any], Any]:
    if name in {policy.value for policy in transforms.AutoAugmentPolicy}:
        return transforms.AutoAugment(transforms.AutoAugmentPolicy(name))
    grey = [min(255, round(255 * value)) for value in mean]
    params: dict[str, Any] = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": grey[0] if len(grey) == 1 else tuple(grey),
    }
    try:
        if name.startswith("rand"):
            return rand_augment_transform(name, params)
        if name.startswith("augmix"):
            return augment_and_mix_transform(name, params)
        return auto_augment_transform(name, params)
    except Exception as error:  # timm's are bare assertions and whatever a wrong letter leads to
        known = sorted(policy.value for policy in transforms.AutoAugmentPolicy)
        raise ValueError(
            f"auto_augment={name!r} is neither one of {known} nor understood by timm (such as 'rand-m9-mstd0.5'): "
            f"{error}"
        ) from error


class Cutout:
    """One square hole at a random place, its centre anywhere, so that parts of it can lie outside (arXiv 1708.04552).

    Args:
        side: In pixels.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, x: Tensor) -> Tensor:
        """[..., H, W] -> the same, with zeros in the hole: after normalisation, the mean."""
        (top, left) = (int(torch.randint(size, ())) - self.side // 2 for size in x.shape[-2:])
        x = x.clone()
        x[..., max(top, 0) : max(top + self.side, 0), max(left, 0) : max(left + self.side, 0)] = 0
        return x


class Mixing:
    """Collate and mix the samples of a batch: mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899), or either in turn.

    Args:
        num_classes: K; mixed labels are probabilities [B, K].
        mixup: Parameter alpha of its beta distribution; 0 for none.
        cutmix: The same for cutmix.

    Raises:
        ValueError: A parameter is negative.
    """

    def __init__(self, num_classes: int, *, mixup: float, cutmix: float) -> None:
        if mixup < 0 or cutmix < 0:
            raise ValueError(f"mixup and cutmix must not be negative, got {mixup!r} and {cutmix!r}")
        mixes: list[Any] = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        if cutmix:
            mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self.mix = v2.RandomChoice(mixes)

    def __call__(self, samples: Sequence[Any]) -> Any:
        return self.mix(*collate_readable(samples))
