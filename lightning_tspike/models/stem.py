"""Stems of the residual backbones, and the checks and default configurations that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import nn

__all__ = ["REDUCTIONS", "Stem", "check_stages", "default_cfg", "make_stem"]

Stem: TypeAlias = Literal["cifar", "deep", "imagenet", "imagenet_max"]

REDUCTIONS: dict[str, tuple[int, int]] = {"cifar": (1, 1), "deep": (1, 2), "imagenet": (2, 4), "imagenet_max": (2, 4)}
"""How much smaller than the image a stem's features are, before and after its pool."""


def make_stem(
    stem: Stem,
    in_chans: int,
    width: int,
    act_layer: Callable[..., nn.Module],
    norm_layer: Callable[..., nn.Module],
    *,
    last_act: bool = True,
) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Layers of a stem from [B, in_chans, H, W]: convolution, norm, activation, pool.

    * ``"cifar"``: conv 3x3, BN, activation: [B, width, H, W].
    * ``"deep"``: three of these, then an average pool 2x2: [B, width, H/2, W/2].
    * ``"imagenet"``: conv 7x7 with stride 2, BN, activation, average pool 3x3 with stride 2: [B, width, H/4, W/4].
    * ``"imagenet_max"``: the same with a max pool, as the original ResNet has it.

    Args:
        stem: Which one.
        in_chans: Channels of the image.
        width: Channels of the result.
        act_layer: Activation module.
        norm_layer: Norm, called with the number of channels.
        last_act: Whether the stem ends with an activation.

    Raises:
        ValueError: There is no such stem.
    """
    if stem not in REDUCTIONS:
        raise ValueError(f"stem must be one of {', '.join(map(repr, REDUCTIONS))}, got {stem!r}")
    if stem == "deep":
        first = [_conv3x3(in_chans, width), norm_layer(width), act_layer(inplace=True)]
        second = [_conv3x3(width, width), norm_layer(width), act_layer(inplace=True)]
        conv: nn.Module = nn.Sequential(*first, *second, _conv3x3(width, width))
        pool: nn.Module = nn.AvgPool2d(2)
    elif stem == "cifar":
        conv, pool = _conv3x3(in_chans, width), nn.Identity()
    else:
        conv = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        pool = (nn.MaxPool2d if stem == "imagenet_max" else nn.AvgPool2d)(3, stride=2, padding=1)
    return conv, norm_layer(width), act_layer(inplace=True) if last_act else nn.Identity(), pool


def _conv3x3(width_in: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, padding=1, bias=False)


def check_stages(layers: Sequence[int], widths: Sequence[int]) -> None:
    """Raise ValueError unless there is one number of blocks and one width per stage."""
    if not layers or len(layers) != len(widths):
        raise ValueError(f"layers and widths need one number per stage each, got layers={layers!r}, widths={widths!r}")


def default_cfg(
    *, num_classes: int, size: int, reduction: int, first_conv: str = "conv1", **other: Any
) -> dict[str, Any]:
    """A configuration as timm wants it; there are no pretrained weights.

    Args:
        num_classes: Number of classes.
        size: Height and width of images.
        reduction: How much smaller the features are.
        first_conv: Name of the first convolution.
        other: Whatever else belongs in it.
    """
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "pool_size": (size // reduction, size // reduction),
        "crop_pct": 1.0 if size < 100 else 0.875,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5) if size < 100 else (0.485, 0.456, 0.406),
        "std": (0.5, 0.5, 0.5) if size < 100 else (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": "fc",
        **other,
    }
