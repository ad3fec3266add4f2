"""Weights that were trained with somebody else's code: read, checked, and put into a network of this project."""

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

__all__ = ["ForeignWeightsError", "ends", "network_of", "read_state_dict", "wrong_keys"]

_WRAPPERS = {"module", "model"}  # parts of keys that say nothing of the network: DataParallel's, a module's around it
_MOST_LEVELS = 4  # of checkpoints in checkpoints
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ForeignWeightsError(ValueError):
    """Weights are not those of the network they were said to be of; the message says what is in the way."""


def read_state_dict(source: str | Path | Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors of a state_dict by their keys, without the names of modules around the network.

    Args:
        source: A state_dict, or a file with one, alone or in a checkpoint under ``state_dict`` or ``model``. Files are
            read with ``weights_only``: nothing in them is run.

    Raises:
        ForeignWeightsError: The file cannot be read, or there is no state_dict in it, or one that is not finite.
    """
    size: float = math.inf  # of what is in memory already, there is no harm
    if not isinstance(source, Mapping):
        path = Path(source)
        if not path.is_file():
            raise ForeignWeightsError(f"there is no file {path.resolve()}")
        size = path.stat().st_size
        try:
            source = read_torch_file(path)
        except ValueError as error:
            raise ForeignWeightsError(f"{path} {error}") from error
    for _ in range(_MOST_LEVELS):
        inner = source.get("state_dict", source.get("model")) if isinstance(source, Mapping) else None
        source = source if inner is None else inner
    if not isinstance(source, Mapping) or not source or not all(isinstance(v, Tensor) for v in source.values()):
        raise ForeignWeightsError("there is no state_dict in it: expected names and tensors")
    try:
        tensors = check_tensors(source, size)
    except ValueError as error:
        raise ForeignWeightsError(f"the state_dict {error}") from error
    if odd := [name for name in tensors if not _is_name(name)]:
        raise ForeignWeightsError(f"the state_dict has names that no module has: {reprlib.repr(odd)}")
    if faults := unusable(tensors):
        raise ForeignWeightsError(f"these weights are not finite: {'; '.join(faults)}")
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): t for name, t in tensors.items()}


def _is_name(name: str) -> bool:
    parts = name.split(".")
    is_named = bool(set(parts) - _WRAPPERS) and len(parts) <= 20
    return is_named and all(re.fullmatch(r"(?!.*\d{5})\w{1,99}", part) for part in parts)


def ends(weights: Mapping[str, Tensor], first: str, what: str) -> tuple[int, int]:
    """Channels that the convolution of this name reads, and classes of the layer ``fc``.

    Raises:
        ForeignWeightsError: One of them is missing or something else, so that the weights are not those of ``what``.
    """
    conv, fc = weights.get(first), weights.get("fc.weight")
    if conv is None or conv.ndim != 4 or fc is None or fc.ndim != 2:
        raise wrong_keys(weights, what)
    return conv.shape[1], len(fc)


def wrong_keys(weights: Mapping[str, Tensor], what: str) -> ForeignWeightsError:
    """The error to raise where weights have other keys than ``what`` has."""
    return ForeignWeightsError(
        f"these are not the keys of {what}: expected conv1, layer1.0.conv1, ..., fc, got {sorted(weights)[:8]} ..."
    )


def network_of(config: NetworkConfig, weights: Mapping[str, Tensor]) -> SpikingNetwork:
    """The network of a configuration, with these weights.

    Args:
        config: Which network.
        weights: By the names that its backbone's ``state_dict`` has. Amplitudes, thresholds and the counters of batch
            norms may be missing, and may have other shapes of as many numbers.

    Returns:
        The network, unfolded, in eval mode on the CPU, in the dtype of the weights.

    Raises:
        ForeignWeightsError: Weights are missing, of another shape, or unknown.
    """
    try:
        network = create_within(config, sum(value.numel() for value in weights.values()))
    except Exception as error:  # what odd shapes do to a model's constructor can be anything
        raise ForeignWeightsError(f"these weights are not a {config.backbone}: {error}") from error
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
        raise ForeignWeightsError(f"these weights are not a {config.backbone}: {'; '.join(problems)}")
    # a trained amplitude may have the shape [1, C, 1, 1] of its channels, or [1] for the layer
    weights = {name: value.reshape(expected[name].shape) for name, value in weights.items()}
    network.model.load_state_dict(weights, strict=False)
    return network.eval()


def _dtype(weight: Tensor) -> torch.dtype:
    if weight.dtype not in _DTYPES:
        raise ForeignWeightsError(f"weights of {weight.dtype}: expected one of {', '.join(map(str, _DTYPES))}")
    return weight.dtype
