"""A network as a folder: ``config.json`` (``manifest.py``) and weights as safetensors (``weights.py``).

Beside them a model card, ``README.md``, and ``fold_report.json``, where the writer knew what folding did; loading
reads neither. ``unfolded/`` may hold the network before folding, as such a folder of its own: for training on.

Nothing in a folder is ever run: names are looked up in timm's registry, weights are safetensors, and what was changed
after it was written is refused.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files.atomic import replace_folder
from ..files.bounds import check_label_names
from ..files.input_spec import InputSpec
from ..files.weights import (
    FILES,
    FolderError,
    Precision,
    encode,
    file_facts,
    numbers_in,
    own_file,
    read_weights,
    unusable,
)
from ..folding.report import FoldReport
from ..models.bounded import create_within
from ..network.rewrites import Rewrites
from ..network.spiking_network import SpikingNetwork
from .card import model_card
from .image_size import take_image_size
from .manifest import CONFIG, Manifest, WeightsFile, describe, read_config, write_config
from .results import Results

__all__ = [
    "CARD",
    "CONFIG",
    "REPORT",
    "UNFOLDED",
    "FolderError",
    "precisions_in",
    "read_folder",
    "read_manifest",
    "read_network",
    "timm_cfg",
    "write_folder",
]

REPORT = "fold_report.json"
CARD = "README.md"
UNFOLDED = "unfolded"


def write_folder(
    path: str | Path,
    network: SpikingNetwork,
    *,
    preprocessing: InputSpec | Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    report: FoldReport | None = None,
    precisions: Iterable[Precision] = ("float32",),
    unfolded: SpikingNetwork | None = None,
    results: Results | None = None,
    files: Mapping[str, bytes] | None = None,
    **card: Any,
) -> Path:
    """Write a network to a folder, whole or not at all: all is written under another name first, then renamed.

    Args:
        path: The folder. A network's folder that is there already is replaced.
        network: Built by :func:`lightning_tspike.models.create_network`, or a folded copy of such a one. Its weights
            are written as float32.
        preprocessing: What the network's input is, as an InputSpec or as a datamodule's ``preprocessing`` has it.
        label_names: Of the K classes.
        report: What folding did, from :func:`lightning_tspike.fold`.
        precisions: At which precisions the weights are written, see ``weights.py``.
        unfolded: The network before folding, to go into ``unfolded/``.
        results: What was measured, for ``config.json`` and the card.
        files: What else is to be in the folder, by name: pictures, a training log.
        card: What else the card says, see :func:`lightning_tspike.store.card.model_card`.

    Returns:
        The path.

    Raises:
        ValueError: The network was made by ``ternarize`` from a model of your own, so no name can rebuild it; weights
            are NaN or infinite; or ``preprocessing`` or ``label_names`` are such as no folder may hold.
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
        raise FileExistsError(
            f"{path} exists and is not a network's folder, so it is not replaced; choose another name"
        )
    try:
        spec = InputSpec.of(preprocessing) if preprocessing is not None else None
        names = [str(name) for name in label_names] if label_names is not None else None
        facts: dict[str, Any] = {
            "preprocessing": spec,
            "label_names": check_label_names(names, network.config.num_classes),
        }
    except ValueError as error:
        raise ValueError(f"nothing is written to {path}, as nothing could read it: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        scratch.mkdir()
        inner: str | None = None
        if unfolded is not None:
            inner = _fill(scratch / UNFOLDED, unfolded, ("float32",), None, facts).sha256
        manifest = _fill(scratch, network, precisions, inner, facts | {"results": results})
        if report is not None:
            (scratch / REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        text = model_card(network, manifest, report=report, files=list(files or ()), **card)
        (scratch / CARD).write_text(text, encoding="utf-8")
        for name, content in (files or {}).items():
            (scratch / name).write_bytes(content)
        replace_folder(scratch, path)
    except SafetensorError as error:
        raise OSError(f"the weights in {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _fill(
    folder: Path,
    network: SpikingNetwork,
    precisions: Iterable[Precision],
    unfolded: str | None,
    facts: dict[str, Any],
) -> Manifest:
    """Write weights and configuration into a folder; gives the configuration."""
    state = network.model.state_dict()
    if faults := unusable(state):
        raise ValueError(f"such weights cannot be saved: {'; '.join(faults)}; go back to a sound checkpoint")
    folder.mkdir(exist_ok=True)
    weights: dict[Precision, WeightsFile] = {}
    for precision in precisions:
        file = folder / FILES[precision]
        save_file(encode(state, precision), file, metadata={"format": "pt"})
        weights[precision] = WeightsFile(**file_facts(file))
    manifest = describe(network, weights=weights, unfolded=unfolded, **facts)
    write_config(manifest, folder / CONFIG)
    for file in folder.glob("*.safetensors"):
        # safetensors lets only the owner read its files; those who may read the configuration may read the weights
        file.chmod((folder / CONFIG).stat().st_mode)
    return manifest


def read_manifest(path: str | Path, *, sha256: str | None = None) -> Manifest:
    """The contents of a folder's ``config.json``.

    Args:
        path: The folder.
        sha256: What its ``sha256`` must be, where that is known from elsewhere.

    Raises:
        FolderError: It is missing, damaged, not understood, or not the one that is expected.
    """
    manifest = read_config(Path(path) / CONFIG)
    if sha256 is not None and manifest.sha256 != sha256:
        raise FolderError(
            f"{Path(path) / CONFIG} is not the one that is expected: its sha256 is {manifest.sha256}, not {sha256}"
        )
    return manifest


def read_folder(
    path: str | Path,
    *,
    precision: Precision | None = None,
    sha256: str | None = None,
    model: nn.Module | None = None,
) -> tuple[SpikingNetwork, Manifest]:
    """Read a network from a folder that :func:`write_folder` wrote.

    Args:
        path: The folder.
        precision: Which file of weights to read; by default the most precise that was written. The network is float32.
        sha256: As for :func:`read_manifest`.
        model: Where the network is your own: an instance of it, see :func:`lightning_tspike.models.create_network`.

    Returns:
        The network, in eval mode on the CPU, and its manifest.

    Raises:
        FolderError: A file is missing, damaged or was changed, the configuration is not understood, or the weights are
            not exactly those of the network it describes.
    """
    manifest = read_manifest(path, sha256=sha256)
    return read_network(path, manifest, precision=precision, model=model), manifest


@torch.inference_mode(False)  # weights that were made within it could be used nowhere else
def read_network(
    path: str | Path,
    manifest: Manifest,
    *,
    precision: Precision | None = None,
    model: nn.Module | None = None,
) -> SpikingNetwork:
    """As :func:`read_folder`, where its ``config.json`` has been read already.

    Args:
        path: The folder.
        manifest: What :func:`read_manifest` has read of it.
        precision: As for :func:`read_folder`.
        model: As for :func:`read_folder`.
    """
    path = Path(path)
    chosen = _choose(manifest, precision, path)
    file = path / FILES[chosen]
    _check_file(own_file(file), manifest.weights.get(chosen))
    network = _build(manifest, path / CONFIG, numbers_in(file), model)
    weights = read_weights(file)
    _shape_neurons(network, manifest.amplitudes, weights)
    for name, parameter in network.model.named_parameters():  # older folders have scalars
        if parameter.shape == (1,) and name in weights and weights[name].ndim == 0:
            weights[name] = weights[name].reshape(1)
    _check_weights(weights, network.model.state_dict(), path)
    network.model.load_state_dict(weights)
    network.pretrained_cfg = timm_cfg(manifest)
    take_image_size(network, manifest.preprocessing)
    return network.eval()


def timm_cfg(manifest: Manifest) -> dict[str, Any]:
    """What timm calls a model's ``pretrained_cfg``: name and classes, and the preprocessing of its images."""
    preprocessing = manifest.preprocessing.to_dict() if manifest.preprocessing is not None else {}
    for key in ("input_size", "mean", "std"):
        if key in preprocessing:
            preprocessing[key] = tuple(preprocessing[key])
    names = {"label_names": list(manifest.label_names)} if manifest.label_names else {}
    return {
        "architecture": manifest.network.backbone,
        "num_classes": manifest.network.num_classes,
        **preprocessing,
        **names,
    }


def precisions_in(path: Path, manifest: Manifest) -> list[Precision]:
    """At which of its precisions a folder has weights, the most precise first; all, where it has no file of them."""
    return [known for known in manifest.precisions if (path / FILES[known]).exists()] or manifest.precisions


def _choose(manifest: Manifest, precision: Precision | None, path: Path) -> Precision:
    there = manifest.precisions
    if precision is None:
        return there[0]
    if precision not in there:
        raise FolderError(f"{path} has no weights of precision {precision!r}, only {', '.join(there)}")
    return precision


def _check_file(file: Path, facts: WeightsFile | None) -> None:
    """Refuse weights that are not those that were written; by size first, before a large file is read."""
    if facts is None:  # older schema versions do not say
        return
    if (size := file.stat().st_size) != facts.size:
        raise FolderError(
            f"{file} has {size} bytes, not {facts.size}: it is cut off or was changed; export or download the "
            "folder again"
        )
    if (sha256 := file_facts(file)["sha256"]) != facts.sha256:
        raise FolderError(
            f"{file} was changed after it was written: its sha256 is {sha256}, not {facts.sha256}; export or "
            "download the folder again"
        )


def _build(manifest: Manifest, file: Path, numbers: int, model: nn.Module | None) -> SpikingNetwork:
    try:
        network = create_within(manifest.network, numbers, model)
        network.rewrites = Rewrites(manifest.standardized, manifest.sum_pools, manifest.merged_norms)
        network.rewrites.apply(network.model)
    except Exception as error:  # what a hostile argument does to a model's constructor can be anything
        raise FolderError(f"{file} describes no network that can be built: {error}") from error
    neurons = network.neurons()
    for name in manifest.amplitudes:
        if name not in neurons:
            raise FolderError(
                f"{file}: 'amplitudes' names {name!r}, which is not a neuron of {manifest.network.backbone}"
            )
    return network


def _shape_neurons(network: SpikingNetwork, amplitudes: Sequence[str], weights: Mapping[str, Tensor]) -> None:
    """Give the neurons the amplitudes that are left and thresholds per channel, where the weights have such."""
    for name, neuron in network.neurons().items():
        threshold, raw_amplitude = weights.get(f"{name}.threshold"), weights.get(f"{name}.raw_amplitude")
        if threshold is not None and threshold.ndim == 1:
            new = torch.ones_like(threshold)
            neuron.threshold = nn.Parameter(new) if isinstance(neuron.threshold, nn.Parameter) else new
        neuron.raw_amplitude = None
        if name in amplitudes:
            shape = raw_amplitude.shape if raw_amplitude is not None and raw_amplitude.ndim == 1 else (1,)
            neuron.raw_amplitude = nn.Parameter(torch.ones(shape))


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
        elif weights[name].is_floating_point() != expected[name].is_floating_point():
            problems.append(f"{name} has type {weights[name].dtype}, expected {expected[name].dtype}")
        elif name.endswith(".threshold") and not (weights[name] > 0).all():
            problems.append(f"{name} is {weights[name].tolist()}, expected a number above 0")
    problems += unusable(weights)
    if problems:
        raise FolderError(
            f"the weights in {path} do not fit its {CONFIG}: {'; '.join(problems)}; export or download the folder again"
        )
