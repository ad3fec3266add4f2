"""SEW-ResNet: spike-element-wise residual networks (Fang et al. 2021, arXiv 2102.04159).

A block ends with a neuron and combines its spikes A with the shortcut's spikes S element by element. For binary spikes
these are logical operations; for ternary ones they mean:

=========== ============= ==========================================================================================
connect     result        for ternary spikes
=========== ============= ==========================================================================================
``"ADD"``   A + S         spikes add up to small integers; folds, the neurons of a stage share one amplitude
``"AND"``   A * S         fires where both fire, with the product of the signs; a product of two signals, so its
                          neurons keep their amplitudes in the fold
``"IAND"``  (1 - |A|) S   the shortcut passes where the block is silent; likewise not foldable, and only a gate of 0 and
                          1 where the amplitude is 1 (``amplitude="fixed"``)
=========== ============= ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .backbone import build
from .residual import ResidualNet
from .stem import Stem, default_cfg

__all__ = ["SEWResNet"]

Connect: TypeAlias = Literal["ADD", "AND", "IAND"]


class SEWBlock(nn.Module):
    """Convolutions, each with norm and activation, combined with the shortcut: [B, c_in, H, W] -> [B, C, H', W'].

    A basic block has two convolutions 3x3 and C = width; a bottleneck 1x1, 3x3, 1x1 and C = 4 * width.
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        downsample: nn.Sequential | None,
        *,
        bottleneck: bool,
        connect: Connect,
        dilation: int,
        first_dilation: int,
        act_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        drop_path: nn.Module | None,
    ) -> None:
        super().__init__()
        self.connect = connect
        plan = (  # channels in and out, kernel, stride, dilation
            [(c_in, width, 1, 1, 1), (width, width, 3, stride, first_dilation), (width, 4 * width, 1, 1, 1)]
            if bottleneck
            else [(c_in, width, 3, stride, first_dilation), (width, width, 3, 1, dilation)]
        )
        body: list[nn.Module] = []
        for before, after, kernel, step, spread in plan:
            conv = nn.Conv2d(before, after, kernel, step, spread * (kernel // 2), dilation=spread, bias=False)
            body += [conv, norm_layer(after), act_layer()]
        self.body = nn.Sequential(*body)
        self.downsample = nn.Sequential(*downsample, act_layer()) if downsample is not None else nn.Identity()
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        a, s = self.body(x), self.downsample(x)
        if self.drop_path is not None:
            a = self.drop_path(a)
        if self.connect == "ADD":
            return a + s
        return a * s if self.connect == "AND" else (1 - a.abs()) * s


class SEWResNet(ResidualNet):
    """Residual network that combines spikes with spikes.

    Shapes for an image [B, in_chans, H, W] and the default arguments::

        stem      conv 3x3, BN, activation     [B, 16, H, W]
        stages.0  layers[0] blocks             [B, 16, H, W]
        stages.1  layers[1] blocks             [B, 32, H/2, W/2]
        stages.2  layers[2] blocks             [B, 64, H/4, W/4]
        head      average pool, linear         [B, num_classes]

    Args:
        layers: Blocks in each stage.
        widths: Width of each stage; the stem has that of the first.
        bottleneck: Bottleneck blocks, with four times the width at their ends.
        connect: ``"ADD"``, ``"AND"`` or ``"IAND"`` (table at the top of this file).
        stem: A name of :func:`lightning_tspike.models.stem.make_stem`.
        options: What :class:`lightning_tspike.models.residual.ResidualNet` takes besides. ``drop_path_rate`` needs
            ``"ADD"``: a block left out of a product would also silence the shortcut.

    Raises:
        ValueError: As for ResidualNet; or ``connect`` is unknown or does not go with ``drop_path_rate``.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        bottleneck: bool = False,
        connect: Connect = "ADD",
        stem: Stem = "cifar",
        **options: Any,
    ) -> None:
        if connect not in ("ADD", "AND", "IAND"):
            raise ValueError(f"connect must be 'ADD', 'AND' or 'IAND', got {connect!r}")
        if connect != "ADD" and (rate := options.get("drop_path_rate")):
            raise ValueError(f"drop_path_rate needs connect='ADD', got connect={connect!r}, drop_path_rate={rate!r}")
        block = partial(SEWBlock, bottleneck=bottleneck, connect=connect)
        super().__init__(block, layers, widths, stem, expansion=4 if bottleneck else 1, **options)


_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

default_cfgs = generate_default_cfgs(
    {
        **{f"tspike_sew_resnet{d}.untrained": default_cfg(num_classes=1000, size=224, reduction=32) for d in _LAYERS},
        "tspike_sew_resnet_small.untrained": default_cfg(num_classes=10, size=32, reduction=4),
    }
)


def _create(depth: int, pretrained: bool, kwargs: dict[str, Any]) -> SEWResNet:
    own = {
        "layers": _LAYERS[depth],
        "widths": (64, 128, 256, 512),
        "bottleneck": depth >= 50,
        "stem": "imagenet",
    }
    return build(SEWResNet, f"tspike_sew_resnet{depth}", pretrained, kwargs, **own)


@register_model
def tspike_sew_resnet18(pretrained: bool = False, **kwargs: object) -> SEWResNet:
    """SEW-ResNet-18 for ImageNet."""
    return _create(18, pretrained, kwargs)


@register_model
def tspike_sew_resnet34(pretrained: bool = False, **kwargs: object) -> SEWResNet:
    """SEW-ResNet-34 for ImageNet."""
    return _create(34, pretrained, kwargs)


@register_model
def tspike_sew_resnet50(pretrained: bool = False, **kwargs: object) -> SEWResNet:
    """SEW-ResNet-50 for ImageNet."""
    return _create(50, pretrained, kwargs)


@register_model
def tspike_sew_resnet101(pretrained: bool = False, **kwargs: object) -> SEWResNet:
    """SEW-ResNet-101 for ImageNet."""
    return _create(101, pretrained, kwargs)


@register_model
def tspike_sew_resnet152(pretrained: bool = False, **kwargs: object) -> SEWResNet:
    """SEW-ResNet-152 for ImageNet."""
    return _create(152, pretrained, kwargs)


@register_model
def tspike_sew_resnet_small(pretrained: bool = False, **kwargs: object) -> SEWResNet:
    """SEW-ResNet-8 of widths 16-32-64."""
    return build(SEWResNet, "tspike_sew_resnet_small", pretrained, kwargs, layers=(1, 1, 1))
