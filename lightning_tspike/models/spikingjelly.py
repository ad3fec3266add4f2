"""ResNets and SEW-ResNets trained with SpikingJelly (Fang et al. 2023, arXiv 2310.16620), by their weights.

SpikingJelly writes a neuron with an input that leaks as well; ours does not scale its input, but has another threshold.
With u = (v - v_reset) / k the spikes are the same:

==================== ============================== ======= ============ =======================
neuron               its charge                      k       decay        threshold
==================== ============================== ======= ============ =======================
IF                   v + x                           1       1            v_threshold - v_reset
LIF                  v + (x - (v - v_reset)) / tau   1/tau   1 - 1/tau    tau (v_threshold - v_reset)
LIF, ``decay_input`` v - (v - v_reset) / tau + x     1       1 - 1/tau    v_threshold - v_reset
false
parametric LIF       that of LIF with 1/tau =        as      1 - sigmoid  as above, of each layer
                     sigmoid(w), learned             above   (w)
==================== ============================== ======= ============ =======================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..network.config import NetworkConfig
from ..network.spiking_network import SpikingNetwork
from .foreign import ends, network_of, read_state_dict

__all__ = ["NETWORKS", "NEURONS", "JellyNeuron", "import_spikingjelly"]

NEURONS = {
    "IFNode": "binary_lif",
    "LIFNode": "binary_lif",
    "ParametricLIFNode": "binary_lif",
    "TernaryIFNode": "ternary_if",
    "TernaryLIFNode": "ternary_lif",
}
"""SpikingJelly's neurons, and what they are here."""

_DEPTHS = (18, 34, 50, 101, 152)
_WIDE = ("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2")
NETWORKS = {
    **{f"spiking_{name}": name for name in (*(f"resnet{depth}" for depth in _DEPTHS), *_WIDE)},
    **{f"sew_resnet{depth}": f"tspike_sew_resnet{depth}" for depth in _DEPTHS},
}
"""SpikingJelly's functions that make networks, and the backbones that they are here."""


@dataclass(frozen=True)
class JellyNeuron:
    """A neuron by the arguments that SpikingJelly's has; weights do not tell them.

    Attributes:
        name: Of its class, in :data:`NEURONS`.
        tau: Time constant of the membrane, in time steps; only LIF neurons have one.
        decay_input: Whether the input leaks, too; only LIF and parametric LIF neurons have this.
        v_threshold: Threshold.
        v_reset: Potential after a spike; None for a soft reset.

    Raises:
        ValueError: There is no such neuron, or it does not fire.
    """

    name: str = "IFNode"
    tau: float = 2.0
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0

    def __post_init__(self) -> None:
        if self.name not in NEURONS:
            raise ValueError(f"neuron must be one of {', '.join(NEURONS)}, got {self.name!r}")
        if not self.tau > 1 or not math.isfinite(self.tau):
            raise ValueError(f"tau must be a number above 1, got {self.tau!r}")
        if not self._height > 0 or not math.isfinite(self._height):
            raise ValueError(
                f"v_threshold must be above v_reset, got v_threshold={self.v_threshold!r}, v_reset={self.v_reset!r}"
            )
        if self.v_reset and NEURONS[self.name] != "binary_lif":
            raise ValueError(f"ternary neurons are reset to 0 here, or softly (None), got v_reset={self.v_reset!r}")

    @property
    def _height(self) -> float:
        """How far the threshold is from where the membrane rests."""
        return self.v_threshold - (self.v_reset or 0.0)

    @property
    def is_parametric(self) -> bool:
        """Whether each layer has learned how fast it leaks."""
        return self.name == "ParametricLIFNode"

    def options(self) -> dict[str, Any]:
        """The same neuron in the options of ours; what is learned comes with the weights."""
        leaks = "LIF" in self.name and not self.is_parametric
        scale = self.tau if leaks and self.decay_input else 1.0
        return {
            "neuron": NEURONS[self.name],
            "amplitude": "fixed",
            "reset": "soft" if self.v_reset is None else "hard",
            "decay": 0.5 if self.is_parametric else 1 - 1 / self.tau if leaks else 1.0,
            "learn_decay": self.is_parametric,
            "threshold": scale * self._height,
        }

    def learned(self, w: Tensor) -> dict[str, Tensor]:
        """What a parametric neuron's weight w is here: the parameter whose sigmoid is the decay, and a threshold."""
        scale = 1 / w.sigmoid() if self.decay_input else torch.ones_like(w)
        return {"raw_decay": -w, "threshold": scale * self._height}


def import_spikingjelly(
    source: str | Path | Mapping[str, Tensor],
    network: str,
    neuron: JellyNeuron | None = None,
    *,
    cnf: str = "ADD",
    timesteps: int = 4,
) -> SpikingNetwork:
    """Rebuild a network of ``spikingjelly.activation_based.model``; its logits are the means of the original's over T.

    Args:
        source: A state_dict, or a file with one, alone or in a checkpoint under ``state_dict`` or ``model``. Files are
            read with ``weights_only``: nothing in them is run.
        network: The function that made it, in :data:`NETWORKS`: ``"spiking_resnet18"``, ``"sew_resnet34"``.
        neuron: Its neurons; None for IFNode.
        cnf: How a SEW-ResNet combines spikes: ``"ADD"``, ``"AND"`` or ``"IAND"``.
        timesteps: Number of time steps T that it was trained with.

    Returns:
        The network, unfolded, in eval mode on the CPU, in the dtype of the weights. Spikes are -1, 0 and +1 or 0 and 1
        already: no amplitude is learned.

    Raises:
        ForeignWeightsError: The file cannot be read, or its weights are not those of such a network.
        ValueError: There is no such network, or it is one that cannot be rebuilt.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    chosen = neuron or JellyNeuron()
    is_sew = network.startswith("sew")
    if is_sew and cnf == "IAND" and network not in ("sew_resnet18", "sew_resnet34"):
        raise ValueError(f"cnf='IAND' of bottlenecks silences the block where the shortcut fires: no {network} has it")
    rename = _sew_name if is_sew else _resnet_name
    weights: dict[str, Tensor] = {}
    for key, value in read_state_dict(source).items():
        layer, _, last = key.rpartition(".")
        if last == "w" and chosen.is_parametric:
            weights |= {f"{rename(layer)}.{name}": learned for name, learned in chosen.learned(value).items()}
        else:
            weights[f"{rename(layer)}.{last}"] = value
    in_chans, num_classes = ends(weights, "conv1.weight", f"a {network}")
    config = NetworkConfig(
        NETWORKS[network],
        num_classes=num_classes,
        in_chans=in_chans,
        timesteps=timesteps,
        backbone_kwargs={"stem": "imagenet_max", "connect": cnf} if is_sew else {},
        **chosen.options(),
    )
    return network_of(config, weights)


def _resnet_name(layer: str) -> str:
    """Name of a ResNet's layer in timm."""
    return re.sub(r"\bsn(\d)$", r"act\1", layer)


def _sew_name(layer: str) -> str:
    """Name of a SEW-ResNet's layer here, where blocks are lists."""
    match = re.match(r"layer(\d+)\.(\d+)\.(?:(conv|bn|sn)(\d)|downsample\.(\d)|(downsample_sn))$", layer)
    if match is None:
        return "act1" if layer == "sn1" else layer
    stage, block, kind, number, part, is_last = match.groups()
    place = f"stages.{int(stage) - 1}.{block}"
    if kind is None:
        return f"{place}.downsample.{2 if is_last else part}"
    return f"{place}.body.{3 * (int(number) - 1) + ('conv', 'bn', 'sn').index(kind)}"
