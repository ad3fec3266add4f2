"""Everything that determines a spiking network except its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from .._checks import check_timesteps
from ..neurons import NeuronOptions, check_neuron

__all__ = ["OWN", "NetworkConfig"]

OWN = "class:"
"""What stands before the name of a class in ``backbone``, where the network is the user's own."""

_BARRED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


@dataclass(frozen=True)
class NetworkConfig(NeuronOptions):
    """Everything that determines a spiking network except its weights. Every value is a primitive that JSON can hold.

    It has the options of its neurons as well, :class:`lightning_tspike.neurons.NeuronOptions`.

    Attributes:
        backbone: Name of a registered timm model, e.g. ``"resnet34"`` or ``"tspike_resnet_small"``; of a network of the
            user's own, ``"class:"`` and the name of its class, which is never imported.
        num_classes: Number of classes K.
        in_chans: Channels C of an image or a frame; the length F of a vector.
        timesteps: Number of time steps T.
        neuron: Kind of neuron, a name in :data:`lightning_tspike.neurons.NEURONS`; ``"none"`` for the ANN itself.
        freeze_cancelled: As in :func:`lightning_tspike.ternarize`.
        backbone_kwargs: Further arguments of the backbone, e.g. ``{"widths": [32, 64, 128]}``.
    """

    backbone: str
    num_classes: int = 1000
    in_chans: int = 3
    timesteps: int = 4
    neuron: str = "ternary_lif"
    freeze_cancelled: bool = True
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_chans"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.backbone, str):
            raise ValueError(f"backbone must be the name of a timm model, got {self.backbone!r}")
        check_neuron(self.neuron)
        check_timesteps(self.timesteps)
        super().__post_init__()
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

    def neuron_options(self) -> dict[str, Any]:
        """The options of its neurons alone."""
        return {option.name: getattr(self, option.name) for option in fields(NeuronOptions)}
