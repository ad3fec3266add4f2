"""Max-ResNet: MS-ResNet whose blocks halve the image by a max pool behind their first norm (Fang et al., NeurIPS 2025).

The paper (arXiv 2505.18608, "Spiking Neural Networks Need High-Frequency Information") has neurons that let low
frequencies pass, and max pools that bring high ones back. What is built here follows its public code
(``cifar10-100/max_resnet.py`` of github.com/bic-L/MaxFormer), with this package's neurons:

* the stem, conv 3x3 and norm, has half the width of the first stage;
* where a stage halves the image, its first block convolves without a stride, and a max pool 3x3 with stride 2 takes
  the norm's output before the second neurons fire;
* that block's shortcut is a convolution 1x1 with stride 2 and a norm, on membrane inputs: real numbers, as is what
  the stem reads. So these few convolutions multiply, and all others add;
* weights start as torch starts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .backbone import build
from .ms_resnet import MSBlock, MSResNet
from .stem import Stem, default_cfg

__all__ = ["MaxResNet"]


class MaxBlock(MSBlock):
    """An MS block that pools what its first norm gives: [B, c_in, H, W] -> [B, width, H/stride, W/stride]."""

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        dilation: int,
        first_dilation: int,
        **layers: Any,
    ) -> None:
        super().__init__(c_in, width, 1, downsample, dilation=dilation, first_dilation=first_dilation, **layers)
        # a stage that dilates instead of halving pools as well, without the stride
        halves = stride != 1 or dilation != first_dilation
        if halves and first_dilation > 1:
            raise ValueError(
                "output_stride must be larger: one stage can dilate instead of halving, the last, as torch's max pools "
                f"cannot be dilated by {first_dilation} with the padding that needs"
            )
        self.pool = nn.MaxPool2d(3, stride, 1) if halves else nn.Identity()

    def first(self, x: Tensor) -> Tensor:
        return self.pool(self.bn1(self.conv1(self.act1(x))))


class MaxResNet(MSResNet):
    """MS-ResNet that halves images by max pools; all its levels of features are membrane inputs.

    Shapes for an image [B, in_chans, H, W] and the default arguments::

        stem      conv 3x3, BN                 [B, 8, H, W]
        stages.0  layers[0] blocks             [B, 16, H, W]
        stages.1  layers[1] blocks             [B, 32, H/2, W/2]
        stages.2  layers[2] blocks             [B, 64, H/4, W/4]
        head      activation, average, linear  [B, num_classes]

    Args:
        layers: Blocks in each stage.
        widths: Channels of each stage.
        stem: A name of :func:`lightning_tspike.models.stem.make_stem`, without its
            last activation.
        stem_width: Channels of the stem; None for half of those of the first stage.
        options: What :class:`lightning_tspike.models.residual.ResidualNet` takes besides.

    Raises:
        ValueError: As for ResidualNet; or ``output_stride`` leaves more than one stage that does not halve the image.
    """

    block = MaxBlock

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        stem: Stem = "cifar",
        stem_width: int | None = None,
        **options: Any,
    ) -> None:
        if stem_width is None and widths:
            stem_width = max(widths[0] // 2, 1)
        super().__init__(layers, widths, stem, stem_width=stem_width, **options)

    def init_weights(self) -> None:
        """Leave all weights as torch has drawn them."""


default_cfgs = generate_default_cfgs(
    {
        f"tspike_max_resnet{name}.untrained": default_cfg(num_classes=10, size=32, reduction=4)
        for name in ("18", "_small")
    }
)


@register_model
def tspike_max_resnet18(pretrained: bool = False, **kwargs: object) -> MaxResNet:
    """Max-ResNet-18 for CIFAR: 12.50 million parameters."""
    own = {"layers": (3, 3, 2), "widths": (128, 256, 512)}
    return build(MaxResNet, "tspike_max_resnet18", pretrained, kwargs, **own)


@register_model
def tspike_max_resnet_small(pretrained: bool = False, **kwargs: object) -> MaxResNet:
    """Max-ResNet-8 of widths 16-32-64."""
    return build(MaxResNet, "tspike_max_resnet_small", pretrained, kwargs, layers=(1, 1, 1))
