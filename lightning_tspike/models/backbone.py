"""What all backbones share: the interface of timm's models around a list of stages and one linear layer."""

# Annotations are not left as strings here: torch.fx and TorchScript read those of forward.
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, get_act_layer, get_norm_layer
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..neurons import SpikingNeuron

__all__ = ["Backbone", "Layer", "build", "check_rate", "layer_type"]

Layer = str | Callable[..., nn.Module]
"""A type of layer, or timm's name for it, e.g. ``"silu"`` or ``"groupnorm"``."""

_POOLS = ("", "avg", "max", "avgmax", "catavgmax")


class Backbone(nn.Module):
    """Base of the backbones: features [B, C, H', W'], average over space, linear layer to [B, num_classes].

    A subclass sets ``stages``, ``num_features`` and ``feature_info`` and then calls :meth:`reset_classifier`. It may
    define what comes before the stages (``forward_stem``, and ``levels`` if that counts as features) and after them
    (``forward_end``).

    Args:
        drop_rate: Share of the pooled features that dropout sets to 0 in training, drawn at each time step.

    Attributes:
        stages: One module for each stage.
        num_features: Channels C of the features.
        feature_info: For each level of features its channels, reduction in size and module, as timm has it.
        has_stem: Whether the first level of features lies before the stages.
        has_blocks: Whether a stage is a list of blocks, which are checkpointed one by one.
    """

    if TYPE_CHECKING:  # TorchScript does not know these types
        stages: nn.Sequential
        num_features: int
        feature_info: list[dict[str, Any]]
        global_pool: SelectAdaptivePool2d
    has_stem = False
    has_blocks = False

    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_rate = check_rate("drop_rate", drop_rate)
        self.grad_checkpointing = False

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last linear layer, or its name."""
        return "fc" if name_only else self.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one for another number of classes; 0 leaves it out.

        Args:
            num_classes: Number of classes K, or 0.
            global_pool: How features are pooled over space: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of both),
                ``"catavgmax"`` (both, one behind the other), or ``""`` for not at all, which needs ``num_classes=0``.
                None keeps what is there.

        Raises:
            ValueError: ``global_pool`` is something else.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if pool not in _POOLS:
            raise ValueError(f"global_pool must be one of {_POOLS}, got {pool!r}")
        if not pool and num_classes:
            raise ValueError(f"without global_pool there is no classifier: num_classes must be 0, got {num_classes!r}")
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        weight = next(self.parameters())
        fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.fc = fc.to(device=weight.device, dtype=weight.dtype)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep what goes into each block (of VGG: each stage) for the backward pass, and compute the rest again."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns by which timm groups parameters from input to output, for learning rates that differ by layer."""
        return {"stem": r"^(?:conv1|bn1|act1)\.", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: those of neurons."""
        neurons = [(name, module) for name, module in self.named_modules() if isinstance(module, SpikingNeuron)]
        return {f"{name}.{key}" for name, neuron in neurons for key, _ in neuron.named_parameters()}

    def init_weights(self) -> None:
        """Give convolutions He et al.'s normal weights by their number of outputs, and no bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_stem(self, x: Tensor) -> Tensor:
        return x

    def forward_end(self, x: Tensor) -> Tensor:
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = self._checkpointed(stage, x)
        else:
            x = self.stages(x)
        return self.forward_end(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def levels(self, x: Tensor) -> Iterator[Tensor]:
        """The features of one level after the other, as in ``feature_info``."""
        for stage in self.stages:
            x = self._checkpointed(stage, x) if self.grad_checkpointing else stage(x)
            yield x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of several levels, with timm's arguments.

        Args:
            x: Images [B, C, H, W].
            indices: Which levels of ``feature_info``; a number for the last so many, None for all.
            norm: Give the last level as the head gets it (of MS-ResNet: spikes).
            stop_early: Compute no more than the levels asked for.
            output_fmt: ``"NCHW"``; there is no other.
            intermediates_only: Leave out the first result.

        Returns:
            What ``forward_features`` gives (or the last level computed, with ``stop_early``), and the maps
            [B, C, H', W'] of the levels, from the first to the last.

        Raises:
            ValueError: ``output_fmt`` is something else.
            AssertionError: There is no such level.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        end = len(self.feature_info) - 1
        maps: list[Tensor] = []
        for level, y in enumerate(self.levels(x)):
            if level in wanted:
                maps.append(self.forward_end(y) if norm and level == end else y)
            if stop_early and level == last:
                break
        if intermediates_only:
            return maps
        return (self.forward_end(y) if level == end else y), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the levels behind the last one asked for, and the head; the arguments are timm's.

        Args:
            indices: As for :meth:`forward_intermediates`.
            prune_norm: Not used: no norm stands alone at the end.
            prune_head: Remove the head even where all levels stay.

        Returns:
            The levels asked for, counted from the first.
        """
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        removed = len(self.feature_info) - 1 - last
        if removed:
            self.stages = self.stages[: len(self.stages) - removed]
            self.feature_info = self.feature_info[: last + 1]
            self.num_features = self.feature_info[last]["num_chs"]
        if removed or prune_head:
            self.reset_classifier(0, "")
        return wanted

    def _checkpointed(self, stage: Any, x: Tensor) -> Tensor:
        for part in stage if self.has_blocks else [stage]:
            x = checkpoint(part, x, use_reentrant=False)
        return x


def layer_type(layer: Layer, kind: str) -> Callable[..., nn.Module]:
    """A type of activation or norm, which may be given by timm's name for it.

    Args:
        layer: The type itself, or its name.
        kind: ``"act_layer"`` or ``"norm_layer"``: the argument that it comes from.

    Raises:
        ValueError: There is no layer of this name.
    """
    if not isinstance(layer, str):
        return layer
    try:
        return (get_act_layer if kind == "act_layer" else get_norm_layer)(layer)
    except KeyError:
        raise ValueError(f"{kind} must be a type of layer or timm's name for one, got {layer!r}") from None


def check_rate(name: str, rate: float) -> float:
    """The rate itself; ValueError unless it is at least 0 and less than 1."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {rate!r}")
    return rate


def build(cls: type[Backbone], name: str, pretrained: bool, kwargs: dict[str, Any], **own: Any) -> Any:
    """A backbone as timm's ``create_model`` wants it; with ``features_only=True``, a module that gives its levels.

    Args:
        cls: Its class.
        name: Its name in timm's registry.
        pretrained: Load pretrained weights.
        kwargs: What the user asks for.
        own: What this model has where the user does not say; ``layers`` among it.
    """
    arguments = {**own, **kwargs}
    levels = range(len(arguments["layers"]) + cls.has_stem)
    feature_cfg = {"out_indices": tuple(levels), "flatten_sequential": True}
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=feature_cfg, **arguments)
