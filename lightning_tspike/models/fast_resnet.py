"""Fast-ResNet: a small residual network for short training runs on images of 32x32 pixels.

After the networks of the fastest CIFAR-10 recipes (Page 2019, "How to train your ResNet"; Jordan 2024,
arXiv 2404.00498): a convolution 2x2 that whitens patches, three stages, max pools before norms. Two things differ. The
shortcut carries membrane inputs, as in MS-ResNet (arXiv 2112.08954). And no activation follows the whitening
convolution, so that it is in the part of the network that a still image passes once for all time steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .backbone import Backbone, Layer, build, layer_type
from .stem import check_stages, default_cfg

__all__ = ["FastResNet"]


class FastBlock(nn.Module):
    """Act, conv 3x3, max pool, norm, plus layers of act, conv 3x3, norm: [B, c_in, H, W] -> [B, width, H/2, W/2].

    Args:
        c_in: Channels that come in.
        width: Channels that go out.
        depth: Convolutions, the one before the pool among them.
        first_act: Whether an activation stands before the first of them.
        act_layer: Activation module.
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
        norm_layer: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.act = act_layer() if first_act else nn.Identity()  # not in place: what comes in is a level of features
        self.conv = nn.Conv2d(c_in, width, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = norm_layer(width)
        body: list[nn.Module] = []
        for _ in range(depth - 1):
            body += [act_layer(), nn.Conv2d(width, width, 3, padding=1, bias=False), norm_layer(width)]
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
        norm_bias: Where the biases of norms start. Ternary neurons are odd functions, which cannot tell a contrast from
            its negative: away from 0, around one of their thresholds, networks of them learn faster.
        act_layer: Activation module, or timm's name for it.
        norm_layer: Norm, called with the number of channels, or timm's name for it.

    Raises:
        ValueError: ``layers`` and ``widths`` have different lengths or are empty, a stage has fewer than 2 layers, a
            name is unknown, or ``drop_rate`` is out of range.
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
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(drop_rate)
        check_stages(layers, widths)
        if min(layers) < 2:
            raise ValueError(f"a stage needs 2 layers or more, got layers={tuple(layers)}")
        act, norm = layer_type(act_layer, "act_layer"), layer_type(norm_layer, "norm_layer")
        channels = 4 * in_chans
        self.conv1 = nn.Conv2d(in_chans, channels, 2, bias=False)
        stages = []
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            block = FastBlock(channels, width, depth, first_act=i > 0, act_layer=act, norm_layer=norm)
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
            if name.endswith("bias"):  # convolutions have none
                nn.init.constant_(parameter, norm_bias)

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
