"""Read the network out of a Lightning checkpoint, without the training around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..files.bounds import check_label_names, check_tensors, plain
from ..files.input_spec import InputSpec
from ..files.torch_files import read_torch_file
from ..files.weights import unusable
from ..models.bounded import create_within
from ..network.config import NetworkConfig
from ..network.spiking_network import SpikingNetwork
from .image_size import take_image_size

__all__ = ["LABEL_NAMES", "PREPROCESSING", "CheckpointError", "SavedNetwork", "read_checkpoint", "reshape_scalars"]

PREPROCESSING = "preprocessing"
"""Key under which TernarySNNModule saves the datamodule's ``preprocessing``."""

LABEL_NAMES = "label_names"
"""Key under which it saves the datamodule's ``class_names``."""

_PREFIX = "network."


class SavedNetwork(NamedTuple):
    """What a checkpoint holds: the network, what is known of its input and its classes, how long it was trained."""

    network: SpikingNetwork
    preprocessing: InputSpec | None
    label_names: Sequence[str] | None
    training_seconds: float | None = None


class CheckpointError(ValueError):
    """A file is not a checkpoint of a spiking network; the message names the file and what is wrong with it."""


@torch.inference_mode(False)  # weights that were made within it could be used nowhere else
def read_checkpoint(
    path: str | Path, config: NetworkConfig | None = None, model: nn.Module | None = None
) -> SavedNetwork:
    """Rebuild a network from a checkpoint of :class:`lightning_tspike.TernarySNNModule`. Nothing in it is ever run.

    Args:
        path: The file.
        config: What the network was built from; by default the checkpoint's hyperparameters say it. For checkpoints of
            a module of your own that keeps its network in ``network``.
        model: Where the network is your own: an instance of it, see :func:`lightning_tspike.models.create_network`.

    Returns:
        The network, in train mode on the CPU and with the ``input_size`` of the images that it was trained on, what its
        input is (the datamodule's ``preprocessing``), its class names and how long it was trained (where a Timer of
        Lightning's has counted, as in ``tspike fit``), each None where it is not known.

    Raises:
        CheckpointError: The file is missing, no checkpoint, sharded, or of another module; it has NaN or infinite
            weights, or asks for more than these (:mod:`lightning_tspike.files.bounds`).
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder of shards, each with a part of the weights; save full checkpoints "
            "(FSDPStrategy(state_dict_type='full'), ModelParallelStrategy(save_distributed_checkpoint=False))"
        )
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path.resolve()}")
    try:
        saved = read_torch_file(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or not a Lightning checkpoint: it {error}") from error
    try:
        state: Any = saved["state_dict"] if isinstance(saved, Mapping) and "state_dict" in saved else None
        if not isinstance(state, Mapping):
            raise ValueError("is not a Lightning checkpoint: it has no state_dict")
        own = {k: v for k, v in state.items() if isinstance(k, str) and k.startswith(_PREFIX)}
        weights = {k.removeprefix(_PREFIX): v for k, v in check_tensors(own, path.stat().st_size).items()}
        if faults := unusable(weights):
            raise ValueError(f"has weights that are not finite: {'; '.join(faults)}; go back to a sound checkpoint")
        preprocessing = saved.get(PREPROCESSING)
        preprocessing = InputSpec.of(preprocessing) if preprocessing is not None else None
    except ValueError as error:
        raise CheckpointError(f"{path} {error}") from error
    if not weights:
        raise CheckpointError(f"{path} is not a checkpoint of TernarySNNModule: it has no weights called 'network.*'")
    if config is None:
        config = _config(saved.get("hyper_parameters", {}), path)
    try:
        network = create_within(config, sum(tensor.numel() for tensor in weights.values()), model)
    except Exception as error:  # what a hostile argument does to a model's constructor can be anything
        raise CheckpointError(f"{path} describes no network that can be built: {error}") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the network that it describes, {config}: {error}") from error
    try:
        label_names = check_label_names(saved.get(LABEL_NAMES), config.num_classes)
    except ValueError as error:
        raise CheckpointError(f"{path} {error}") from error
    take_image_size(network, preprocessing)
    return SavedNetwork(network, preprocessing, label_names, _training_seconds(saved))


def reshape_scalars(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state of an older checkpoint, where what neurons learn for a layer was a scalar and is now [1].

    Args:
        optimizer: That is about to load it.
        state_dict: The state; it is left as it is.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    if len(keys) != len(parameters):
        return state_dict  # the optimizer says what is wrong
    state = dict(state_dict["state"])
    for key, parameter in zip(keys, parameters, strict=True):
        if parameter.shape == (1,) and key in state:
            state[key] = {
                # "step" counts steps, it is a scalar for every parameter
                name: v.reshape(1) if isinstance(v, torch.Tensor) and v.ndim == 0 and name != "step" else v
                for name, v in state[key].items()
            }
    return {**state_dict, "state": state}


def _training_seconds(saved: Any) -> float | None:
    """What a Timer has counted, over all the parts of a run that was resumed."""
    try:
        seconds = saved["callbacks"]["Timer"]["time_elapsed"]["train"]
    except (KeyError, TypeError):
        return None
    return float(seconds) if type(seconds) in (int, float) and 0 <= seconds < math.inf else None


def _config(hyper_parameters: Any, path: Path) -> NetworkConfig:
    known = [field.name for field in fields(NetworkConfig)]
    try:
        own = plain({name: hyper_parameters[name] for name in known if name in hyper_parameters})
        # before there was freeze_cancelled, every amplitude was learned
        return NetworkConfig(**{"freeze_cancelled": False, **own, "backbone_kwargs": own.get("backbone_kwargs") or {}})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say how to build its network: {error}") from error
