"""Build a spiking network from names and numbers alone, so that a checkpoint or a config.json can rebuild it."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
from timm.layers import to_2tuple

from .. import functional
from ..neurons import NEURONS, AmplitudeKind, NeuronOptions, check_options
from ..ternarize import SpikingNetwork, ternarize

__all__ = ["NetworkConfig", "create_network"]

_BARRED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
_PARTS = re.compile("[a-z]+|[0-9]+")


@dataclass(frozen=True)
class NetworkConfig:
    """All that determines a spiking network but its weights. Every value is a primitive that JSON can hold.

    Attributes:
        backbone: Name of a registered timm model, e.g. ``"resnet34"`` or ``"tspike_resnet_small"``.
        num_classes: Number of classes K.
        in_chans: Channels C of an image or a frame; the length F of a vector.
        timesteps: Number of time steps T.
        neuron: Kind of neuron, a name in :data:`lightning_tspike.neurons.NEURONS`.
        amplitude: ``"layer"``, ``"channel"`` or ``"fixed"``; this and the following up to ``surrogate`` as in
            :class:`lightning_tspike.neurons.SpikingNeuron`.
        decay: Membrane decay tau that the neurons start with.
        threshold: Firing threshold theta that the neurons start with.
        learn_decay: Whether the decay is learned.
        learn_threshold: Whether the threshold is learned.
        reset: ``"hard"`` or ``"soft"``.
        detach_reset: Whether the gradient through the reset is cut.
        surrogate: Surrogate gradient.
        freeze_cancelled: As in :func:`lightning_tspike.ternarize.ternarize`.
        backbone_kwargs: Further arguments of the backbone, e.g. ``{"widths": [32, 64, 128]}``.
    """

    backbone: str
    num_classes: int = 1000
    in_chans: int = 3
    timesteps: int = 4
    neuron: str = "ternary_lif"
    amplitude: AmplitudeKind = "layer"
    decay: float = functional.DECAY
    threshold: float = functional.THRESHOLD
    learn_decay: bool = False
    learn_threshold: bool = False
    reset: functional.Reset = "hard"
    detach_reset: bool = False
    surrogate: functional.Surrogate = "rectangular"
    freeze_cancelled: bool = True
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_chans"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.backbone, str):
            raise ValueError(f"backbone must be the name of a timm model, got {self.backbone!r}")
        if self.neuron not in NEURONS:
            raise ValueError(f"neuron must be one of {sorted(NEURONS)}, got {self.neuron!r}")
        check_options(self.timesteps, **self.neuron_options())
        if not isinstance(self.freeze_cancelled, bool):
            raise ValueError(f"freeze_cancelled must be true or false, got {self.freeze_cancelled!r}")
        # These would make a checkpoint or a config.json fetch or open other files.
        if barred := sorted(_BARRED & set(self.backbone_kwargs)):
            raise ValueError(f"backbone_kwargs must not hold {barred}: they load weights from elsewhere")
        try:
            json.dumps(self.backbone_kwargs)
        except TypeError as error:
            raise ValueError(
                f"backbone_kwargs must hold only what JSON can hold, got {self.backbone_kwargs!r}: {error}"
            ) from None

    def neuron_options(self) -> NeuronOptions:
        """The options that every kind of neuron takes."""
        return NeuronOptions(
            amplitude=self.amplitude,
            decay=self.decay,
            threshold=self.threshold,
            learn_decay=self.learn_decay,
            learn_threshold=self.learn_threshold,
            reset=self.reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
        )


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
    check_name(config.backbone)
    try:
        model = timm.create_model(
            config.backbone, num_classes=config.num_classes, in_chans=config.in_chans, **config.backbone_kwargs
        )
    except TypeError as error:
        raise ValueError(
            f"backbone {config.backbone!r} does not take backbone_kwargs {config.backbone_kwargs!r}: {error}"
        ) from error
    _, *native = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    # a transformer takes one size alone; a model of vectors has none beside their length
    sides = to_2tuple(config.backbone_kwargs.get("img_size") or native) if native else ()
    network = ternarize(
        model,
        config.timesteps,
        input_size=(config.in_chans, *sides),
        neuron=config.neuron,
        freeze_cancelled=config.freeze_cancelled,
        **config.neuron_options(),
    )
    network.config = config
    return network


def check_name(name: str) -> None:
    """Let only names in timm's registry pass: a checkpoint or config.json must not send us to a hub or a file.

    Raises:
        ValueError: No such model; the message has close names.
    """
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            architecture = timm.models.get_arch_name(name)
            raise ValueError(f"{error} Known are {timm.list_pretrained(f'{architecture}.*')}") from None
        return
    names = timm.list_models()
    close = _close_names(name, names) or fnmatch.filter(names, f"*{name}*")[:4]
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "timm.list_models() lists them all"
    raise ValueError(f"unknown backbone {name!r}; {hint}")


def _close_names(name: str, names: Sequence[str]) -> list[str]:
    """The four that are most alike: in their letters, and in the words and numbers that they are made of.

    By letters alone ``resnet101_clip`` would be nearer to ``resnet19_cifar`` than ``tspike_resnet19`` is.
    """
    shorts = {known: known.removeprefix("tspike_") for known in names}  # who leaves that out means ours as well
    alike = difflib.get_close_matches(name, {*names, *shorts.values()}, n=50, cutoff=0.6)
    parts = set(_PARTS.findall(name))

    def likeness(known: str) -> float:
        letters = max(difflib.SequenceMatcher(None, name, k).ratio() for k in (known, shorts[known]))
        own = set(_PARTS.findall(shorts[known]))
        return letters + len(parts & own) / len(parts | own)

    return sorted((known for known in names if {known, shorts[known]} & set(alike)), key=likeness, reverse=True)[:4]
