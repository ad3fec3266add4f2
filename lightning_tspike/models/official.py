"""Networks trained with the published code of the ternary spike (github.com/yfguo91/Ternary-Spike), by their weights.

That code puts a wrapper around every layer, so keys end in ``.conv.weight``, ``.bn.weight`` or ``.pool.weight``,
whatever the layer is. ``layer1`` to ``layer4`` are the stages, ``relu1`` and ``output_act`` a block's activations; a
trained amplitude is an activation's ``fire_ratio``. A deep stem is one list, ``conv1.0`` to ``conv1.8``, whose last
norm and activation stand beside it here. Every spike layer fires at half of its ``V_th`` of 1 and decays by 0.25: the
defaults here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..network.config import NetworkConfig
from ..network.spiking_network import SpikingNetwork
from .foreign import ends, network_of, read_state_dict, wrong_keys

__all__ = ["import_official"]

_WHAT = "a residual network of the published code"
_LAYERS = {"conv", "bn", "pool"}
_ACTIVATIONS = {"relu": "act1", "relu1": "act1", "output_act": "act2"}
_END_OF_DEEP_STEM = {"conv1.7": "bn1", "conv1.8": "act1"}
_BACKBONES: dict[Any, str] = {
    ((2, 2, 2, 2), (64, 128, 256, 512), "imagenet"): "tspike_resnet18",
    ((3, 4, 6, 3), (64, 128, 256, 512), "imagenet"): "tspike_resnet34",
    ((3, 3, 2), (128, 256, 512), "cifar"): "tspike_resnet19",
    ((2, 2, 2, 2), (64, 128, 256, 512), "deep"): "tspike_resnet20",
    ((3, 3, 3), (128, 256, 512), "cifar"): "tspike_resnet20_cifar",
}


def import_official(source: str | Path | Mapping[str, Tensor], timesteps: int = 4) -> SpikingNetwork:
    """Rebuild a residual network of the published code; which one is found from keys and shapes.

    Args:
        source: A state_dict, or a file with one, alone or in a checkpoint under ``state_dict`` or ``model``. Files are
            read with ``weights_only``: nothing in them is run.
        timesteps: Number of time steps T that it was trained with; the published ImageNet ResNet-18 has 4.

    Returns:
        The network, unfolded, in eval mode on the CPU, in the dtype of the weights. Every neuron layer has an
        amplitude of its own: the trained one where the weights have it, else 1.

    Raises:
        ForeignWeightsError: The file cannot be read, or keys or shapes are not those of such a network.
    """
    weights = {name: value for key, value in read_state_dict(source).items() if (name := _own_name(key))}
    return network_of(_config(weights, timesteps), weights)


def _own_name(key: str) -> str | None:
    """Name in this project's network; None for what the published code has and never uses."""
    *path, last = key.split(".")
    if not path:
        return None if last == "scale" else last
    if path[-1] in _LAYERS and len(path) > 1:
        path.pop()
    if last == "fire_ratio":
        path[-1], last = _ACTIVATIONS.get(path[-1], path[-1]), "raw_amplitude"
    layer = ".".join(path)
    name = f"{_END_OF_DEEP_STEM.get(layer, layer)}.{last}"
    return re.sub(r"^layer(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.", name)


def _config(weights: Mapping[str, Tensor], timesteps: int) -> NetworkConfig:
    """Read widths, depths and stem off the shapes."""
    blocks: dict[int, set[int]] = {}
    widths: dict[int, int] = {}
    for name, value in weights.items():
        if match := re.match(r"stages\.(\d+)\.(\d+)\.conv2\.weight$", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
            widths[int(match[1])] = len(value)
    is_deep = "conv1.0.weight" in weights
    first = "conv1.0.weight" if is_deep else "conv1.weight"
    in_chans, num_classes = ends(weights, first, _WHAT)
    stages = range(len(blocks))
    if not blocks or sorted(blocks) != list(stages):
        raise wrong_keys(weights, _WHAT)
    stem = "deep" if is_deep else "imagenet" if weights[first].shape[-1] == 7 else "cifar"
    layout = tuple(len(blocks[i]) for i in stages), tuple(widths[i] for i in stages), stem
    own = dict(zip(("layers", "widths", "stem"), layout, strict=True))
    if is_deep:  # the published code has this stem and this shortcut together
        own["shortcut"] = "avg"
    return NetworkConfig(
        _BACKBONES.get(layout, "tspike_resnet_small"),
        num_classes=num_classes,
        in_chans=in_chans,
        timesteps=timesteps,
        freeze_cancelled=False,
        backbone_kwargs={} if layout in _BACKBONES else own,
    )
