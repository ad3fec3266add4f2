"""What the residual backbones share: a stem, and stages of blocks with a shortcut around each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from timm.layers import DropPath
from timm.models.resnet import downsample_avg, downsample_conv
from torch import Tensor, nn

from .backbone import Backbone, Layer, check_rate, layer_type
from .stem import REDUCTIONS, Stem, check_stages, make_stem

__all__ = ["ResidualNet", "ResidualOptions"]


@dataclass(frozen=True, kw_only=True)
class ResidualOptions:
    """What every residual backbone takes.

    Attributes:
        num_classes: Number of classes; 0 leaves the classifier out.
        in_chans: Channels of the image.
        global_pool: As in :meth:`lightning_tspike.models.backbone.Backbone.reset_classifier`.
        output_stride: How much smaller than the image features may become: later stages dilate their convolutions
            instead of a stride. None for no limit.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth: how often the last block is left out in training; earlier ones less, the
            first never. Drawn for each image at each time step.
        act_layer: Activation, called with ``inplace=True`` where that is safe.
        norm_layer: Norm, called with the number of channels.
    """

    num_classes: int = 10
    in_chans: int = 3
    global_pool: str = "avg"
    output_stride: int | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    act_layer: Layer = nn.ReLU
    norm_layer: Layer = nn.BatchNorm2d


class ResidualNet(Backbone):
    """Stem, stages of residual blocks, average over space, linear layer.

    Shapes for an image [B, in_chans, H, W], and a stem that does not reduce it::

        stem      conv 3x3, BN, activation     [B, stem_width, H, W]
        stages.i  layers[i] blocks             [B, expansion * widths[i], H/2^i, W/2^i]
        head      average pool, linear         [B, num_classes]

    Args:
        block: Makes a block from what timm's :class:`timm.models.resnet.BasicBlock` takes: channels in, width, stride,
            the shortcut's projection or None, and by name ``dilation``, ``first_dilation``, ``act_layer``,
            ``norm_layer`` and ``drop_path``.
        layers: Blocks in each stage.
        widths: Width of each stage.
        stem: A name of :func:`lightning_tspike.models.stem.make_stem`.
        stem_width: Channels of the stem; None for the width of the first stage.
        expansion: Channels of a block per width.
        shortcut: Where channels or size change: ``"conv"``, a convolution 1x1 with stride, or ``"avg"``, an average
            pool before it.
        acts_first: Activations come before convolutions: the stem ends without one, and one stands before the head.
        options: As in :class:`ResidualOptions`.

    Raises:
        ValueError: ``layers`` and ``widths`` have different lengths or are empty, a name is unknown, a rate is out of
            range, or ``output_stride`` is no power of 2 or below that of the stem.
    """

    has_stem = True
    has_blocks = True

    def __init__(
        self,
        block: Callable[..., nn.Module],
        layers: Sequence[int],
        widths: Sequence[int],
        stem: Stem,
        *,
        stem_width: int | None = None,
        expansion: int = 1,
        shortcut: Literal["conv", "avg"] = "conv",
        acts_first: bool = False,
        **options: Any,
    ) -> None:
        chosen = ResidualOptions(**options)
        super().__init__(chosen.drop_rate)
        check_stages(layers, widths)
        if shortcut not in ("conv", "avg"):
            raise ValueError(f"shortcut must be 'conv' or 'avg', got {shortcut!r}")
        act, norm = layer_type(chosen.act_layer, "act_layer"), layer_type(chosen.norm_layer, "norm_layer")
        channels = widths[0] if stem_width is None else stem_width
        self.conv1, self.bn1, self.act1, self.pool = make_stem(
            stem, chosen.in_chans, channels, act, norm, last_act=not acts_first
        )
        before_pool, reduction = REDUCTIONS[stem]
        limit = _limit(chosen.output_stride, reduction)
        self.feature_info = [{"num_chs": channels, "reduction": before_pool, "module": "act1"}]

        project: Callable[..., nn.Module] = downsample_conv if shortcut == "conv" else downsample_avg
        drop_step = check_rate("drop_path_rate", chosen.drop_path_rate) / max(sum(layers) - 1, 1)
        stages: list[nn.Module] = []
        dilation, count = 1, 0
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            first_dilation, stride = dilation, 1
            if i > 0 and reduction < limit:
                stride, reduction = 2, 2 * reduction
            elif i > 0:
                dilation *= 2
            blocks = []
            for _ in range(depth):
                down = None
                if stride != 1 or channels != expansion * width:
                    down = project(
                        channels, expansion * width, kernel_size=1, stride=stride, dilation=dilation, norm_layer=norm
                    )
                blocks.append(
                    block(
                        channels,
                        width,
                        stride,
                        down,
                        dilation=dilation,
                        first_dilation=first_dilation,
                        act_layer=act,
                        norm_layer=norm,
                        drop_path=DropPath(count * drop_step) if count * drop_step > 0 else None,
                    )
                )
                channels, stride, first_dilation, count = expansion * width, 1, dilation, count + 1
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = channels
        if acts_first:
            self.act2 = act()  # not in place: what comes in is a level of features
        self.reset_classifier(chosen.num_classes, chosen.global_pool)
        self.init_weights()

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.pool(self.act1(self.bn1(self.conv1(x))))

    def levels(self, x: Tensor) -> Iterator[Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))
        yield x
        yield from super().levels(self.pool(x))


def _limit(output_stride: int | None, least: int) -> float:
    if output_stride is None:
        return float("inf")
    is_power = isinstance(output_stride, int) and output_stride > 0 and output_stride & (output_stride - 1) == 0
    if not is_power or output_stride < least:
        raise ValueError(
            f"output_stride must be a power of 2 of at least {least}, which this stem reduces by, got {output_stride!r}"
        )
    return output_stride
