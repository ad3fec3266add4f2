"""A network as a folder: ``model.safetensors`` (weights) and ``config.json`` (all that rebuilds the network).

Beside them a model card, ``README.md``.

``config.json``, schema version 2::

    schema_version    2
    library_version   version of lightning-tspike that wrote the folder
    network           the fields of lightning_tspike.models.NetworkConfig
    amplitudes        names of the neurons that keep an amplitude of their own; empty where all are folded away
    sum_pools         names of average pools that sum instead
    merged_norms      {name of a batch norm that is gone: name of the layer that has taken it up}
    preprocessing     null where it is not known, or {"input_size": [C, H, W], "mean": [C numbers], "std": [C numbers]};
                      for images that are resized also "interpolation" and "crop_pct"; for event cameras "frames":
                      {"timesteps", "slice_by", "sensor_size"}, and the values are counts of events

A folded network has thresholds of shape [], or [C] where its channels need different ones. Version 1 had neither
``sum_pools`` nor ``merged_norms``. What folding did is in ``fold_report.json``, where the writer knew it; nothing reads
that file.

Nothing in a folder is ever run: names are looked up in timm's registry, weights are safetensors.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .atomic import replace_folder
from .card import model_card
from .models import NetworkConfig, create_network
from .report import FoldReport
from .rewrite import Rewrites
from .ternarize import SpikingNetwork

__all__ = ["CONFIG", "WEIGHTS", "FolderError", "read_folder", "write_folder"]

SCHEMA_VERSION = 2
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
REPORT = "fold_report.json"
CARD = "README.md"


class FolderError(ValueError):
    """A folder does not hold a network; the message names the file, what is wrong with it and the way out."""


def write_folder(
    path: str | Path,
    network: SpikingNetwork,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    report: FoldReport | None = None,
) -> Path:
    """Write a network to a folder, whole or not at all: all is written under another name first, then renamed.

    Args:
        path: The folder. A network's folder that is there already is replaced.
        network: Built by :func:`lightning_tspike.models.create_network`, or a folded copy of such a one.
        preprocessing: ``input_size``, ``mean`` and ``std`` of the images, as a datamodule's ``preprocessing`` has them.
        report: What folding did, from :func:`lightning_tspike.fold.fold`.

    Returns:
        The path.

    Raises:
        ValueError: The network was made by ``ternarize`` from a model of your own, so no name can rebuild it.
        FileExistsError: Something else than a network's folder is at ``path``.
        OSError: The folder cannot be written; what was at ``path`` is as it was.
    """
    if network.config is None:
        raise ValueError(
            "this network was ternarized from a model without a name, so a folder could not rebuild it; "
            "register the model with timm and build it by lightning_tspike.models.create_network"
        )
    path = Path(path).resolve()
    if path.exists() and not (path / CONFIG).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is there and is no folder of a network: it is not replaced; choose another name")
    config: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "library_version": version("lightning-tspike"),
        "network": asdict(network.config),
        "amplitudes": [name for name, neuron in network.neurons().items() if neuron.raw_amplitude is not None],
        "sum_pools": list(network.rewrites.sum_pools),
        "merged_norms": dict(network.rewrites.merged_norms),
        "preprocessing": dict(preprocessing) if preprocessing is not None else None,
    }
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        scratch.mkdir()
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if report is not None:
            (scratch / REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        (scratch / CARD).write_text(
            model_card(network, version=config["library_version"], preprocessing=preprocessing, report=report)
        )
        save_file(weights, scratch / WEIGHTS, metadata={"format": "pt"})
        # safetensors lets only the owner read its files; whoever may read the configuration may read the weights
        (scratch / WEIGHTS).chmod((scratch / CONFIG).stat().st_mode)
        replace_folder(scratch, path)
    except SafetensorError as error:
        raise OSError(f"{path / WEIGHTS} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def read_folder(path: str | Path) -> tuple[SpikingNetwork, dict[str, Any]]:
    """Read a network from a folder that :func:`write_folder` wrote.

    Args:
        path: The folder.

    Returns:
        The network, in eval mode on the CPU, and the contents of its ``config.json``.

    Raises:
        FolderError: A file is missing or damaged, the configuration is not understood, or the weights are not exactly
            those of the network it describes.
    """
    path = Path(path)
    config = _read_config(path / CONFIG)
    network = _build(config, path / CONFIG)
    weights = _read_weights(path / WEIGHTS)
    _shape_neurons(network, config["amplitudes"], weights)
    _check_weights(weights, network.model.state_dict(), path)
    network.model.load_state_dict(weights)
    return network.eval(), config


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FolderError(f"{file} is missing: a network's folder holds {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FolderError(f"{file} is not valid JSON ({error}); export or download the folder again") from error
    if not isinstance(config, dict) or type(config.get("schema_version")) is not int or config["schema_version"] < 1:
        raise FolderError(f"{file} has no whole number 'schema_version': it was not written by lightning-tspike")
    if config["schema_version"] > SCHEMA_VERSION:
        raise FolderError(
            f"{file} has schema version {config['schema_version']}, this lightning-tspike "
            f"{version('lightning-tspike')} reads up to {SCHEMA_VERSION}; upgrade lightning-tspike"
        )
    if config["schema_version"] == 1:
        config = {"sum_pools": [], "merged_norms": {}, **config}
    kinds = {"network": dict, "amplitudes": list, "sum_pools": list, "merged_norms": dict, "preprocessing": dict | None}
    for key, kind in kinds.items():
        if not isinstance(config.get(key, ...), kind):
            raise FolderError(f"{file}: {key!r} is missing or not understood, got {config.get(key)!r}")
    return config


def _build(config: dict[str, Any], file: Path) -> SpikingNetwork:
    known = {field.name for field in fields(NetworkConfig)}
    if unknown := sorted(set(config["network"]) - known):
        raise FolderError(f"{file}: unknown entries {unknown} in 'network', expected {sorted(known)}")
    try:
        network = create_network(NetworkConfig(**config["network"]))
        network.rewrites = Rewrites(tuple(config["sum_pools"]), config["merged_norms"])
        network.rewrites.apply(network.model)
    except (TypeError, ValueError) as error:
        raise FolderError(f"{file} describes no network that can be built: {error}") from error
    neurons = network.neurons()
    for name in config["amplitudes"]:
        if not isinstance(name, str) or name not in neurons:
            backbone = config["network"]["backbone"]
            raise FolderError(f"{file}: 'amplitudes' names {name!r}, which is no neuron of {backbone}")
    return network


def _shape_neurons(network: SpikingNetwork, amplitudes: list[str], weights: Mapping[str, Tensor]) -> None:
    """Give the neurons the amplitudes that are left and thresholds per channel, where the weights have such."""
    for name, neuron in network.neurons().items():
        threshold, raw_amplitude = weights.get(f"{name}.threshold"), weights.get(f"{name}.raw_amplitude")
        if threshold is not None and threshold.ndim == 1:
            new = torch.ones_like(threshold)
            neuron.threshold = nn.Parameter(new) if isinstance(neuron.threshold, nn.Parameter) else new
        neuron.raw_amplitude = None
        if name in amplitudes:
            shape = raw_amplitude.shape if raw_amplitude is not None and raw_amplitude.ndim == 1 else ()
            neuron.raw_amplitude = nn.Parameter(torch.ones(shape))


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FolderError(f"{file} is missing: a network's folder holds {CONFIG} and {WEIGHTS}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise FolderError(f"{file} is damaged ({error}); export or download the folder again") from error


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Exactly the tensors that the network needs, of the right shape: nothing missing, nothing left over."""
    problems = []
    if missing := sorted(expected.keys() - weights.keys()):
        problems.append(f"missing tensors {missing}")
    if extra := sorted(weights.keys() - expected.keys()):
        problems.append(f"tensors the network does not have {extra}")
    for name in sorted(weights.keys() & expected.keys()):
        if weights[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}")
        elif weights[name].is_floating_point() and not weights[name].isfinite().all():
            problems.append(f"{name} holds NaN or infinite values")
        elif weights[name].is_floating_point() != expected[name].is_floating_point():
            problems.append(f"{name} has type {weights[name].dtype}, expected {expected[name].dtype}")
        elif name.endswith(".threshold") and not (weights[name] > 0).all():
            problems.append(f"{name} is {weights[name].tolist()}, expected a number above 0")
    if problems:
        raise FolderError(
            f"{path / WEIGHTS} does not fit {path / CONFIG}: {'; '.join(problems)}; export or download the folder again"
        )
