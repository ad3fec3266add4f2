"""Residual networks of the ternary spike (Guo et al., AAAI 2024, arXiv 2312.06372), after He et al. (2016).

Blocks are conv-BN-act-conv-BN, plus the shortcut, then act: an identity shortcut carries spikes. The configurations are
those of the paper authors' published code; its names are in brackets:

============================ ============ ================== ================ ==========================================
name                         blocks       widths             stem             shortcut that projects
============================ ============ ================== ================ ==========================================
``tspike_resnet18``          2, 2, 2, 2   64-128-256-512     imagenet         conv 1x1 (``ResNet``)
``tspike_resnet34``          3, 4, 6, 3   64-128-256-512     imagenet         conv 1x1 (``ResNet``)
``tspike_resnet19``          3, 3, 2      128-256-512        cifar            conv 1x1 (``resnet19_cifar``)
``tspike_resnet20``          2, 2, 2, 2   64-128-256-512     deep             average pool, conv 1x1
                                                                              (``resnet20_cifar_modified``: the paper's)
``tspike_resnet20_cifar``    3, 3, 3      128-256-512        cifar            conv 1x1 (``resnet20_cifar``; not what the
                                                                              paper calls ResNet-20)
``tspike_resnet_small``      1, 1, 1      16-32-64           cifar            conv 1x1; this project's, for small images
============================ ============ ================== ================ ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock

from .backbone import build
from .residual import ResidualNet
from .stem import Stem, default_cfg

__all__ = ["SpikingResNet"]


class SpikingResNet(ResidualNet):
    """Residual network whose identity shortcuts carry spikes.

    Shapes for an image [B, in_chans, H, W] and the default arguments::

        stem      conv 3x3, BN, activation     [B, 16, H, W]
        stages.0  layers[0] basic blocks       [B, 16, H, W]
        stages.1  layers[1] basic blocks       [B, 32, H/2, W/2]
        stages.2  layers[2] basic blocks       [B, 64, H/4, W/4]
        head      average pool, linear         [B, num_classes]

    Args:
        layers: Basic blocks in each stage.
        widths: Channels of each stage; the stem has those of the first.
        stem: A name of :func:`lightning_tspike.models.stem.make_stem`.
        shortcut: Where width or size change: ``"conv"``, a convolution 1x1 with stride, or ``"avg"``, an average pool
            before it.
        options: What :class:`lightning_tspike.models.residual.ResidualNet` takes besides.

    Raises:
        ValueError: As for ResidualNet.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        stem: Stem = "cifar",
        shortcut: Literal["conv", "avg"] = "conv",
        **options: Any,
    ) -> None:
        super().__init__(BasicBlock, layers, widths, stem, shortcut=shortcut, **options)


default_cfgs = generate_default_cfgs(
    {
        "tspike_resnet18.untrained": default_cfg(num_classes=1000, size=224, reduction=32),
        "tspike_resnet34.untrained": default_cfg(num_classes=1000, size=224, reduction=32),
        "tspike_resnet19.untrained": default_cfg(num_classes=10, size=32, reduction=4),
        "tspike_resnet20.untrained": default_cfg(num_classes=10, size=32, reduction=16, first_conv="conv1.0"),
        "tspike_resnet20_cifar.untrained": default_cfg(num_classes=10, size=32, reduction=4),
        "tspike_resnet_small.untrained": default_cfg(num_classes=10, size=32, reduction=4),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], **own: Any) -> SpikingResNet:
    return build(SpikingResNet, name, pretrained, kwargs, **own)


@register_model
def tspike_resnet18(pretrained: bool = False, **kwargs: object) -> SpikingResNet:
    """ResNet-18 for ImageNet with the published code's stem: 11.69 million parameters."""
    own = {"layers": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "stem": "imagenet"}
    return _create("tspike_resnet18", pretrained, kwargs, **own)


@register_model
def tspike_resnet34(pretrained: bool = False, **kwargs: object) -> SpikingResNet:
    """ResNet-34 for ImageNet with the published code's stem: 21.80 million parameters."""
    own = {"layers": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "stem": "imagenet"}
    return _create("tspike_resnet34", pretrained, kwargs, **own)


@register_model
def tspike_resnet19(pretrained: bool = False, **kwargs: object) -> SpikingResNet:
    """ResNet-19 for CIFAR: 12.57 million parameters with 100 classes."""
    return _create("tspike_resnet19", pretrained, kwargs, layers=(3, 3, 2), widths=(128, 256, 512))


@register_model
def tspike_resnet20(pretrained: bool = False, **kwargs: object) -> SpikingResNet:
    """The paper's ResNet-20 for CIFAR, the published code's ``resnet20_cifar_modified``: 11.25 million parameters."""
    own = {"layers": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "stem": "deep", "shortcut": "avg"}
    return _create("tspike_resnet20", pretrained, kwargs, **own)


@register_model
def tspike_resnet20_cifar(pretrained: bool = False, **kwargs: object) -> SpikingResNet:
    """The published code's ``resnet20_cifar``, not the paper's ResNet-20: 17.29 million parameters."""
    return _create("tspike_resnet20_cifar", pretrained, kwargs, layers=(3, 3, 3), widths=(128, 256, 512))


@register_model
def tspike_resnet_small(pretrained: bool = False, **kwargs: object) -> SpikingResNet:
    """ResNet-8 of widths 16-32-64 (``layers``, ``widths`` to change): about 78,000 parameters."""
    return _create("tspike_resnet_small", pretrained, kwargs, layers=(1, 1, 1))
