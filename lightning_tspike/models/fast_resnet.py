"""Fast-ResNet: a small residual network for short training runs on images of 32x32 pixels.

After the networks of the fastest CIFAR-10 recipes (Page 2019, "How to train your ResNet"; Jordan 2024,
arXiv 2404.00498): a convolution 2x2 that whitens patches, three stages, max pools before norms. Two things differ. The
shortcut carries membrane inputs, as in MS-ResNet (arXiv 2112.08954). And no activation follows the whitening
convolution, so that it is in the part of the network that a still image passes once for all time steps.

It can do without norms, by convolutions with standardised weights (Brock et al. 2021, "Characterizing signal
propagation to close the performance gap in unnormalized ResNets", arXiv 2101.08692). There no norm divides an amplitude
out: all of them are live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from timm.layers import ScaledStdConv2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .backbone import Backbone, Layer, build, layer_type
from .stem import check_stages, default_cfg

__all__ = ["FastResNet"]

_MEAN_OF_MAX = 1.03  # of four standard normal numbers, which is what a max pool of 2x2 adds where no norm takes it away


class FastBlock(nn.Module):
    """Act, conv 3x3, max pool, norm, plus layers of act, conv 3x3, norm: [B, c_in, H, W] -> [B, width, H/2, W/2].

    Args:
        c_in: Channels that come in.
        width: Channels that go out.
        depth: Convolutions, the one before the pool among them.
        first_act: Whether an activation stands before the first of them.
        act_layer: Activation module.
        conv_layer: Convolution 3x3, called with the numbers of channels in and out.
        norm_layer: Norm, called with the number of channels.
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        depth: int,
        *,
        first_act: bool,
        act_layer: Callable[..., nn.Module],
        conv_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.act = act_layer() if first_act else nn.Identity()  # not in place: what comes in is a level of features
        self.conv = conv_layer(c_in, width)
        self.pool = nn.MaxPool2d(2)
        self.norm = norm_layer(width)
        body: list[nn.Module] = []
        for _ in range(depth - 1):
            body += [act_layer(), conv_layer(width, width), norm_layer(width)]
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(self.conv(self.act(x))))
        return x + self.body(x)


class FastResNet(Backbone):
    """Residual network of a few wide stages, each of which halves the image.

    Shapes for an image [B, in_chans, H, W]::

        conv1     conv 2x2                     [B, 4 * in_chans, H - 1, W - 1]
        stages.i  layers[i] times conv 3x3     [B, widths[i], (H - 1) // 2^(i + 1), (W - 1) // 2^(i + 1)]
        head      activation, average, linear  [B, num_classes]

    ``conv1`` has as many channels as a patch has values: :class:`lightning_tspike.callbacks.WhitenedConvolution` sets
    them to whitening filters.

    Args:
        layers: Convolutions in each stage, at least 2: the first, and those that the shortcut passes by.
        widths: Channels of each stage.
        num_classes: Number of classes; 0 leaves the head out.
        in_chans: Channels of the image.
        global_pool: As in :meth:`lightning_tspike.models.backbone.Backbone.reset_classifier`.
        drop_rate: Dropout before the classifier.
        norm_bias: Where the biases of norms, or those in their place, start. Ternary neurons are odd functions, which
            cannot tell a contrast from its negative: away from 0, around one of their thresholds, networks of them
            learn faster.
        norm_free_gain: None for norms. A number for none: in their place are convolutions with a bias, whose weights
            are standardised, times this gain and a learned one for each channel. Variances stay as they are at 1.27
            for ternary neurons with a threshold of 1/2, which send spikes for 0.617 of normally distributed inputs
            (0.617^-1/2), at 1.71 for ReLU.
        act_layer: Activation module, or timm's name for it.
        norm_layer: Norm, called with the number of channels, or timm's name for it.

    Raises:
        ValueError: ``layers`` and ``widths`` have different lengths or are empty, a stage has fewer than 2 layers, a
            name is unknown, or ``drop_rate`` or ``norm_free_gain`` is out of range.
    """

    has_blocks = True

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2),
        widths: Sequence[int] = (64, 256, 256),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        norm_bias: float = 0.0,
        norm_free_gain: float | None = None,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(drop_rate)
        check_stages(layers, widths)
        if min(layers) < 2:
            raise ValueError(f"a stage needs 2 layers or more, got layers={tuple(layers)}")
        if norm_free_gain is not None and not norm_free_gain > 0:
            raise ValueError(f"norm_free_gain must be a positive number or None, got {norm_free_gain!r}")
        act, norm = layer_type(act_layer, "act_layer"), layer_type(norm_layer, "norm_layer")
        conv: Callable[..., nn.Module] = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        if norm_free_gain is not None:
            conv, norm = partial(ScaledStdConv2d, kernel_size=3, padding=1, gamma=norm_free_gain), nn.Identity
        channels = 4 * in_chans
        self.conv1 = nn.Conv2d(in_chans, channels, 2, bias=False)
        layer_types = {"act_layer": act, "conv_layer": conv, "norm_layer": norm}
        stages = []
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            block = FastBlock(channels, width, depth, first_act=i > 0, **layer_types)
            stages.append(nn.Sequential(block))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.act2 = act()  # not in place: what comes in is a level of features
        self.num_features = channels
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()
        for name, parameter in self.stages.named_parameters():
            if name.endswith("bias"):
                is_pooled = name.endswith(".conv.bias")  # before a max pool, without a norm behind it
                nn.init.constant_(parameter, norm_bias - (_MEAN_OF_MAX if is_pooled else 0.0))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: those of neurons, and gains."""
        gains = {name for name, _ in self.named_parameters() if name.endswith(".gain")}
        return super().no_weight_decay() | gains

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def forward_end(self, x: Tensor) -> Tensor:
        return self.act2(x)

    def levels(self, x: Tensor) -> Iterator[Tensor]:
        yield from super().levels(self.conv1(x))


default_cfgs = generate_default_cfgs(
    {
        f"tspike_fast_resnet{name}.untrained": default_cfg(num_classes=10, size=32, reduction=8, pool_size=(3, 3))
        for name in ("", "_small")
    }
)


@register_model
def tspike_fast_resnet(pretrained: bool = False, **kwargs: object) -> FastResNet:
    """Fast-ResNet of widths 64-256-256."""
    return build(FastResNet, "tspike_fast_resnet", pretrained, kwargs, layers=(2, 2, 2))


@register_model
def tspike_fast_resnet_small(pretrained: bool = False, **kwargs: object) -> FastResNet:
    """Fast-ResNet of widths 16-64-64."""
    return build(FastResNet, "tspike_fast_resnet_small", pretrained, kwargs, layers=(2, 2, 2), widths=(16, 64, 64))
