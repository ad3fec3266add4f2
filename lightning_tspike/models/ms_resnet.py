"""MS-ResNet: residual networks whose shortcut adds membrane inputs (Hu et al. 2021, arXiv 2112.08954).

Neurons come before convolutions, so what the shortcut carries is real: it is added up before the next neuron fires, and
no spike is ever added to a spike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .backbone import build
from .residual import ResidualNet
from .stem import Stem, default_cfg

__all__ = ["MSResNet"]


class MSBlock(nn.Module):
    """Twice act, conv 3x3, norm, plus the shortcut: [B, c_in, H, W] -> [B, width, H/stride, W/stride]."""

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        dilation: int,
        first_dilation: int,
        act_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        drop_path: nn.Module | None,
    ) -> None:
        super().__init__()
        self.act1 = act_layer()  # not in place: the shortcut reads the same tensor
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, first_dilation, dilation=first_dilation, bias=False)
        self.bn1 = norm_layer(width)
        self.act2 = act_layer(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation=dilation, bias=False)
        self.bn2 = norm_layer(width)
        self.downsample = nn.Identity() if downsample is None else downsample
        self.drop_path = drop_path

    def first(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(self.act1(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act2(self.first(x))))
        if self.drop_path is not None:
            y = self.drop_path(y)
        return y + self.downsample(x)


class MSResNet(ResidualNet):
    """Residual network whose shortcuts carry membrane inputs; all its levels of features are membrane inputs.

    Shapes for an image [B, in_chans, H, W] and the default arguments::

        stem      conv 3x3, BN                 [B, 16, H, W]
        stages.0  layers[0] blocks             [B, 16, H, W]
        stages.1  layers[1] blocks             [B, 32, H/2, W/2]
        stages.2  layers[2] blocks             [B, 64, H/4, W/4]
        head      activation, average, linear  [B, num_classes]

    Args:
        layers: Blocks in each stage.
        widths: Channels of each stage; the stem has those of the first.
        stem: A name of :func:`lightning_tspike.models.stem.make_stem`, without its
            last activation.
        options: What :class:`lightning_tspike.models.residual.ResidualNet` takes besides.

    Raises:
        ValueError: As for ResidualNet.
    """

    block: type[MSBlock] = MSBlock

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        stem: Stem = "cifar",
        **options: Any,
    ) -> None:
        super().__init__(self.block, layers, widths, stem, acts_first=True, **options)

    def forward_end(self, x: Tensor) -> Tensor:
        return self.act2(x)


_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 104: (3, 8, 32, 8)}

default_cfgs = generate_default_cfgs(
    {
        **{f"tspike_ms_resnet{d}.untrained": default_cfg(num_classes=1000, size=224, reduction=32) for d in _LAYERS},
        "tspike_ms_resnet_small.untrained": default_cfg(num_classes=10, size=32, reduction=4),
    }
)


def _create(depth: int, pretrained: bool, kwargs: dict[str, Any]) -> MSResNet:
    own = {"layers": _LAYERS[depth], "widths": (64, 128, 256, 512), "stem": "imagenet"}
    return build(MSResNet, f"tspike_ms_resnet{depth}", pretrained, kwargs, **own)


@register_model
def tspike_ms_resnet18(pretrained: bool = False, **kwargs: object) -> MSResNet:
    """MS-ResNet-18 for ImageNet."""
    return _create(18, pretrained, kwargs)


@register_model
def tspike_ms_resnet34(pretrained: bool = False, **kwargs: object) -> MSResNet:
    """MS-ResNet-34 for ImageNet."""
    return _create(34, pretrained, kwargs)


@register_model
def tspike_ms_resnet104(pretrained: bool = False, **kwargs: object) -> MSResNet:
    """MS-ResNet-104 for ImageNet: basic blocks in all stages."""
    return _create(104, pretrained, kwargs)


@register_model
def tspike_ms_resnet_small(pretrained: bool = False, **kwargs: object) -> MSResNet:
    """MS-ResNet-8 of widths 16-32-64."""
    return build(MSResNet, "tspike_ms_resnet_small", pretrained, kwargs, layers=(1, 1, 1))
