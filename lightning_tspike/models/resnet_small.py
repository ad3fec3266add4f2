"""A small ResNet for images of 8x8 to 32x32 pixels, after the CIFAR networks of He et al. (2016, arXiv 1512.03385).

One 3x3 stem, then stages of basic blocks with an identity or projection shortcut; each stage after the first halves
the image. The activations are modules, so that `ternarize` can swap them for neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

__all__ = ["ResNetSmall"]


class ResNetSmall(nn.Module):
    """Small residual network.

    Shapes for an image [B, in_chans, H, W] and the default widths::

        stem      conv 3x3, BN, activation     [B, 16, H, W]
        stages.0  layers[0] basic blocks       [B, 16, H, W]
        stages.1  layers[1] basic blocks       [B, 32, H/2, W/2]
        stages.2  layers[2] basic blocks       [B, 64, H/4, W/4]
        head      average pool, linear         [B, num_classes]

    Args:
        layers: Basic blocks in each stage.
        widths: Channels of each stage; the stem has those of the first.
        num_classes: Number of classes; 0 leaves the head out.
        in_chans: Channels of the image.
        act_layer: Activation module, called with ``inplace=True``.

    Raises:
        ValueError: ``layers`` and ``widths`` have different lengths or are empty.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
        act_layer: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(widths):
            raise ValueError(
                f"layers and widths need one number per stage each, got layers={layers!r}, widths={widths!r}"
            )
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = act_layer(inplace=True)
        stages, width_in = [], widths[0]
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            stages.append(_stage(width_in, width, depth, stride=1 if i == 0 else 2, act_layer=act_layer))
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the head by a fresh one for another number of classes."""
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.act1(self.bn1(self.conv1(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stage(width_in: int, width: int, depth: int, *, stride: int, act_layer: type[nn.Module]) -> nn.Sequential:
    blocks = []
    for i in range(depth):
        stride_i, width_i = (stride, width_in) if i == 0 else (1, width)
        project = stride_i != 1 or width_i != width
        shortcut = downsample_conv(width_i, width, kernel_size=1, stride=stride_i) if project else None
        blocks.append(BasicBlock(width_i, width, stride_i, shortcut, act_layer=act_layer))
    return nn.Sequential(*blocks)


default_cfgs = generate_default_cfgs(
    {
        "tspike_resnet_small.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


@register_model
def tspike_resnet_small(pretrained: bool = False, **kwargs: Any) -> ResNetSmall:
    """ResNet-8 of widths 16-32-64 (``layers``, ``widths`` to change): about 78,000 parameters."""
    return build_model_with_cfg(ResNetSmall, "tspike_resnet_small", pretrained, **kwargs)
