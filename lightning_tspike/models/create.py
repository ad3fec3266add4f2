"""Build a spiking network from names and numbers alone, so that a checkpoint or a config.json can rebuild it."""

from __future__ import annotations

import difflib
import fnmatch
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import timm

from .. import functional
from ..neurons import check_options
from ..ternarize import SpikingNetwork, ternarize

__all__ = ["NetworkConfig", "create_network"]


_BARRED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


@dataclass(frozen=True)
class NetworkConfig:
    """All that determines a spiking network but its weights. Every value is a primitive that JSON can hold.

    Attributes:
        backbone: Name of a registered timm model, e.g. ``"resnet34"`` or ``"tspike_resnet_small"``.
        num_classes: Number of classes K.
        in_chans: Channels C of an image or a frame.
        timesteps: Number of time steps T.
        amplitude: ``"layer"`` or ``"fixed"``, as in :class:`lightning_tspike.neurons.TernaryLIF`.
        decay: Membrane decay tau.
        threshold: Firing threshold theta that the neurons start with.
        detach_reset: Whether the gradient through the reset is cut.
        backbone_kwargs: Further arguments of the backbone, e.g. ``{"widths": [32, 64, 128]}``.
    """

    backbone: str
    num_classes: int = 1000
    in_chans: int = 3
    timesteps: int = 4
    amplitude: Literal["layer", "fixed"] = "layer"
    decay: float = functional.DECAY
    threshold: float = functional.THRESHOLD
    detach_reset: bool = False
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_chans"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.backbone, str):
            raise ValueError(f"backbone must be the name of a timm model, got {self.backbone!r}")
        check_options(self.timesteps, self.amplitude, self.decay, self.threshold)
        if not isinstance(self.detach_reset, bool):
            raise ValueError(f"detach_reset must be true or false, got {self.detach_reset!r}")
        # These would make a checkpoint or a config.json fetch or open other files.
        if barred := sorted(_BARRED & set(self.backbone_kwargs)):
            raise ValueError(f"backbone_kwargs must not hold {barred}: they load weights from elsewhere")
        try:
            json.dumps(self.backbone_kwargs)
        except TypeError as error:
            raise ValueError(
                f"backbone_kwargs must hold only what JSON can hold, got {self.backbone_kwargs!r}: {error}"
            ) from None


def create_network(config: NetworkConfig) -> SpikingNetwork:
    """Create the backbone by timm and ternarize it; weights are freshly initialised.

    Args:
        config: What to build.

    Returns:
        The network, in train mode, with ``config`` attached.

    Raises:
        ValueError: No such backbone (close names are given), the backbone refuses an argument, or a neuron option is
            out of range.
    """
    _check_name(config.backbone)
    try:
        model = timm.create_model(
            config.backbone, num_classes=config.num_classes, in_chans=config.in_chans, **config.backbone_kwargs
        )
    except TypeError as error:
        raise ValueError(
            f"backbone {config.backbone!r} does not take backbone_kwargs {config.backbone_kwargs!r}: {error}"
        ) from error
    network = ternarize(
        model,
        config.timesteps,
        amplitude=config.amplitude,
        decay=config.decay,
        threshold=config.threshold,
        detach_reset=config.detach_reset,
    )
    network.config = config
    return network


def _check_name(name: str) -> None:
    """Only names in timm's registry: a checkpoint or config.json must not send us to a hub or a file."""
    if timm.is_model(name):
        return
    names = timm.list_models()
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.6) or fnmatch.filter(names, f"*{name}*")[:4]
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "timm.list_models() lists them all"
    raise ValueError(f"unknown backbone {name!r}; {hint}")
