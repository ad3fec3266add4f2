"""Spiking VGG networks: the published code's VGG for CIFAR, after Simonyan and Zisserman (2015, arXiv 1409.1556).

Convolutions 3x3 with bias, BN, activation; a pool of 2x2 between stages; the average over space and one linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .backbone import Backbone, Layer, build, layer_type
from .stem import check_stages, default_cfg

__all__ = ["SpikingVGG"]


class SpikingVGG(Backbone):
    """VGG with batch norm and one linear layer.

    Shapes for an image [B, in_chans, H, W]::

        stages.0  layers[0] times conv 3x3, BN, activation              [B, widths[0], H, W]
        stages.i  pool 2x2, layers[i] times conv 3x3, BN, activation    [B, widths[i], H/2^i, W/2^i]
        head      average over space, linear                            [B, num_classes]

    Args:
        layers: Convolutions in each stage.
        widths: Channels of each stage.
        pool: ``"avg"``, as in the published code, or ``"max"``.
        num_classes: Number of classes; 0 leaves the head out.
        in_chans: Channels of the image.
        global_pool: As in :meth:`lightning_tspike.models.backbone.Backbone.reset_classifier`.
        drop_rate: Dropout before the classifier.
        act_layer: Activation module, called with ``inplace=True``.
        norm_layer: Norm, called with the number of channels.

    Raises:
        ValueError: ``layers`` and ``widths`` have different lengths or are empty, a name is unknown, or ``drop_rate``
            is out of range.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        pool: Literal["avg", "max"] = "avg",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(drop_rate)
        check_stages(layers, widths)
        if pool not in ("avg", "max"):
            raise ValueError(f"pool must be 'avg' or 'max', got {pool!r}")
        act, norm = layer_type(act_layer, "act_layer"), layer_type(norm_layer, "norm_layer")
        stages, width_in = [], in_chans
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            stage: list[nn.Module] = []
            if i > 0:
                stage.append(nn.AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(2))
            for _ in range(depth):
                stage += [nn.Conv2d(width_in, width, 3, padding=1), norm(width), act(inplace=True)]
                width_in = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.num_features = widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 2**i, "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()


_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}

default_cfgs = generate_default_cfgs(
    {
        f"tspike_{name}.untrained": default_cfg(num_classes=10, size=32, reduction=reduction, first_conv="stages.0.0")
        for name, reduction in (("vgg11", 16), ("vgg13", 16), ("vgg16", 16), ("vgg_small", 4))
    }
)


def _create(depth: int, pretrained: bool, kwargs: dict[str, Any]) -> SpikingVGG:
    own = {"layers": _DEPTHS[depth], "widths": (64, 128, 256, 512, 512)}
    return build(SpikingVGG, f"tspike_vgg{depth}", pretrained, kwargs, **own)


@register_model
def tspike_vgg11(pretrained: bool = False, **kwargs: object) -> SpikingVGG:
    """VGG-11 for CIFAR."""
    return _create(11, pretrained, kwargs)


@register_model
def tspike_vgg13(pretrained: bool = False, **kwargs: object) -> SpikingVGG:
    """VGG-13 for CIFAR."""
    return _create(13, pretrained, kwargs)


@register_model
def tspike_vgg16(pretrained: bool = False, **kwargs: object) -> SpikingVGG:
    """VGG-16 for CIFAR, the published code's."""
    return _create(16, pretrained, kwargs)


@register_model
def tspike_vgg_small(pretrained: bool = False, **kwargs: object) -> SpikingVGG:
    """VGG with three convolutions of widths 16-32-64."""
    return build(SpikingVGG, "tspike_vgg_small", pretrained, kwargs, layers=(1, 1, 1))
