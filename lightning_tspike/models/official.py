"""Networks trained with the published code of the ternary spike (github.com/yfguo91/Ternary-Spike), by their weights.

That code puts a wrapper around every layer, so keys end in ``.conv.weight``, ``.bn.weight`` or ``.pool.weight``,
whatever the layer is. ``layer1`` to ``layer4`` are the stages, ``relu1`` and ``output_act`` a block's activations; a
trained amplitude is an activation's ``fire_ratio``. A deep stem is one list, ``conv1.0`` to ``conv1.8``, whose last
norm and activation stand beside it here. Every spike layer fires at half of its ``V_th`` of 1 and decays by 0.25: the
defaults here.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.bounds import check_tensors
from ..files.torch_files import read_torch_file
from ..files.weights import unusable
from ..network.config import NetworkConfig
from ..network.spiking_network import SpikingNetwork
from .bounded import create_within

__all__ = ["OfficialError", "import_official"]

_MOST_LEVELS = 4  # of checkpoints in checkpoints
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WRAPPERS = {"conv", "bn", "pool"}
_ACTIVATIONS = {"relu": "act1", "relu1": "act1", "output_act": "act2"}
_END_OF_DEEP_STEM = {"conv1.7": "bn1", "conv1.8": "act1"}
_BACKBONES: dict[Any, str] = {
    ((2, 2, 2, 2), (64, 128, 256, 512), "imagenet"): "tspike_resnet18",
    ((3, 4, 6, 3), (64, 128, 256, 512), "imagenet"): "tspike_resnet34",
    ((3, 3, 2), (128, 256, 512), "cifar"): "tspike_resnet19",
    ((2, 2, 2, 2), (64, 128, 256, 512), "deep"): "tspike_resnet20",
    ((3, 3, 3), (128, 256, 512), "cifar"): "tspike_resnet20_cifar",
}


class OfficialError(ValueError):
    """Weights are not those of one of the published code's residual networks; the message says what is in the way."""


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
        OfficialError: The file cannot be read, or keys or shapes are not those of such a network.
    """
    weights = {name: value for key, value in _state_dict(source).items() if (name := _own_name(key))}
    if faults := unusable(weights):
        raise OfficialError(f"these weights are not finite: {'; '.join(faults)}")
    config = _config(weights, timesteps)
    try:
        network = create_within(config, sum(value.numel() for value in weights.values()))
    except Exception as error:  # what odd shapes do to a model's constructor can be anything
        raise OfficialError(f"these weights are not a {config.backbone}: {error}") from error
    network.to(_dtype(weights["fc.weight"]))
    expected = network.model.state_dict()
    has_default = {name for name in expected if name.endswith((".threshold", ".raw_amplitude", ".num_batches_tracked"))}
    problems = []
    if missing := sorted(expected.keys() - weights.keys() - has_default):
        problems.append(f"missing {missing}")
    if extra := sorted(weights.keys() - expected.keys()):
        problems.append(f"not understood {extra}")
    problems += [
        f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in weights.items()
        if name in expected and value.numel() != expected[name].numel()
    ]
    if problems:
        raise OfficialError(
            f"these weights are not a {config.backbone}, as their shapes suggest: {'; '.join(problems)}"
        )
    # a trained amplitude may have the shape [1, C, 1, 1] of its channels, or [1] for the layer
    weights = {name: value.reshape(expected[name].shape) for name, value in weights.items()}
    network.model.load_state_dict(weights, strict=False)
    return network.eval()


def _state_dict(source: str | Path | Mapping[str, Any]) -> Mapping[str, Tensor]:
    size: float = math.inf  # of what is in memory already, there is no harm
    if not isinstance(source, Mapping):
        path = Path(source)
        if not path.is_file():
            raise OfficialError(f"there is no file {path.resolve()}")
        size = path.stat().st_size
        try:
            source = read_torch_file(path)
        except ValueError as error:
            raise OfficialError(f"{path} {error}") from error
    for _ in range(_MOST_LEVELS):
        inner = source.get("state_dict", source.get("model")) if isinstance(source, Mapping) else None
        source = source if inner is None else inner
    if not isinstance(source, Mapping) or not source or not all(isinstance(v, Tensor) for v in source.values()):
        raise OfficialError("there is no state_dict in it: expected names and tensors")
    try:
        tensors = check_tensors(source, size)
    except ValueError as error:
        raise OfficialError(f"the state_dict {error}") from error
    if odd := [name for name in tensors if not _is_name(name)]:
        raise OfficialError(f"the state_dict has names that no module has: {reprlib.repr(odd)}")
    return tensors


def _is_name(name: str) -> bool:
    parts = name.split(".")
    is_named = bool(set(parts) - {"module", "model"}) and len(parts) <= 20
    return is_named and all(re.fullmatch(r"(?!.*\d{5})\w{1,99}", part) for part in parts)


def _dtype(weight: Tensor) -> torch.dtype:
    if weight.dtype not in _DTYPES:
        raise OfficialError(f"weights of {weight.dtype}: expected one of {', '.join(map(str, _DTYPES))}")
    return weight.dtype


def _own_name(key: str) -> str | None:
    """Name in this project's network; None for what the published code has and never uses."""
    *path, last = [part for part in key.split(".") if part not in ("module", "model")]
    if not path:
        return None if last == "scale" else last
    if path[-1] in _WRAPPERS and len(path) > 1:
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
    conv, fc = weights.get("conv1.0.weight" if is_deep else "conv1.weight"), weights.get("fc.weight")
    stages = range(len(blocks))
    is_known = conv is not None and conv.ndim == 4 and fc is not None and fc.ndim == 2
    if not is_known or not blocks or sorted(blocks) != list(stages):
        raise OfficialError(
            "these are not the keys of a residual network of the published code: expected conv1, layer1.0.conv1, ..., "
            f"fc, got {sorted(weights)[:8]} ..."
        )
    assert conv is not None
    assert fc is not None
    stem = "deep" if is_deep else "imagenet" if conv.shape[-1] == 7 else "cifar"
    layout = tuple(len(blocks[i]) for i in stages), tuple(widths[i] for i in stages), stem
    own = dict(zip(("layers", "widths", "stem"), layout, strict=True))
    if is_deep:  # the published code has this stem and this shortcut together
        own["shortcut"] = "avg"
    return NetworkConfig(
        _BACKBONES.get(layout, "tspike_resnet_small"),
        num_classes=len(fc),
        in_chans=conv.shape[1],
        timesteps=timesteps,
        freeze_cancelled=False,
        backbone_kwargs={} if layout in _BACKBONES else own,
    )
