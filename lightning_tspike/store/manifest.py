"""``config.json``: all that rebuilds a network, but its weights, and what these must be.

Schema version 3::

    schema_version    3
    library_version   version of lightning-tspike that wrote the folder
    network           the fields of lightning_tspike.models.NetworkConfig
    amplitudes        names of the neurons that keep an amplitude of their own; empty where all are folded away
    sum_pools         names of average pools that sum instead
    merged_norms      {name of a batch norm that is gone: name of the layer that has taken it up}
    preprocessing     null where it is not known, or {"input_size": [C, H, W], "mean": [C numbers], "std": [C numbers]};
                      for images that are resized also "interpolation" and "crop_pct"; for event cameras "frames":
                      {"timesteps", "slice_by", "sensor_size"}, and the values are counts of events
    label_names       the K classes' names, or null where they are not known
    weights           {precision: {"sha256", "size" in bytes}} of each file of weights (lightning_tspike.files.weights)
    unfolded          "sha256" of unfolded/config.json, where that folder holds the network before folding, or null
    sha256            of all the above as JSON with sorted keys and no spaces

So one number, the last, says what the folder holds. Version 2 had neither ``label_names`` nor what follows it (a file
that was changed could not be told), version 1 neither ``sum_pools`` nor ``merged_norms``. Both are still read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files.bounds import check_label_names, check_preprocessing, plain
from ..files.weights import PRECISIONS, FolderError, Precision, own_file
from ..network.spiking_network import SpikingNetwork

__all__ = ["CONFIG", "SCHEMA_VERSION", "describe", "precisions_in", "read_config", "seal"]

SCHEMA_VERSION = 3
CONFIG = "config.json"

_LARGEST = 4 << 20  # bytes; the names of ImageNet's 22k classes take a tenth of it
_V2 = {"network": dict, "amplitudes": list, "sum_pools": list, "merged_norms": dict, "preprocessing": dict | None}
_V3 = {**_V2, "label_names": list | None, "weights": dict, "unfolded": str | None, "sha256": str}
_ADDED: dict[int, dict[str, Any]] = {  # what each schema version has added, as it is where it is missing
    2: {"sum_pools": [], "merged_norms": {}},
    3: {"label_names": None, "weights": {}, "unfolded": None, "sha256": None},
}


def describe(
    network: SpikingNetwork,
    *,
    preprocessing: Mapping[str, Any] | None,
    label_names: Sequence[str] | None,
    weights: Mapping[str, Mapping[str, Any]],
    unfolded: str | None,
) -> dict[str, Any]:
    """The contents of ``config.json`` for a network that has a ``config``."""
    config: Any = network.config
    return seal(
        {
            "schema_version": SCHEMA_VERSION,
            "library_version": version("lightning-tspike"),
            "network": asdict(config),
            "amplitudes": [name for name, neuron in network.neurons().items() if neuron.raw_amplitude is not None],
            "sum_pools": list(network.rewrites.sum_pools),
            "merged_norms": dict(network.rewrites.merged_norms),
            "preprocessing": dict(preprocessing) if preprocessing is not None else None,
            "label_names": list(label_names) if label_names is not None else None,
            "weights": {precision: dict(facts) for precision, facts in weights.items()},
            "unfolded": unfolded,
        }
    )


def seal(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with ``sha256``."""
    contents = {key: value for key, value in config.items() if key != "sha256"}
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"))
    return {**contents, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_config(file: Path) -> dict[str, Any]:
    """Read ``config.json`` of any schema version up to ours, as one of ours.

    Raises:
        FolderError: It is missing, no JSON, of a newer version, was changed, or has entries that are not understood.
    """
    if (size := own_file(file).stat().st_size) > _LARGEST:
        raise FolderError(f"{file} has {size} bytes, no configuration has more than {_LARGEST}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, numbers of too many digits
        raise FolderError(f"{file} is not valid JSON ({error}); export or download the folder again") from error
    schema = config.get("schema_version") if isinstance(config, dict) else None
    if type(schema) is not int or schema < 1:
        raise FolderError(f"{file} has no whole number 'schema_version': it was not written by lightning-tspike")
    if schema > SCHEMA_VERSION:
        raise FolderError(
            f"{file} has schema version {schema}, this lightning-tspike {version('lightning-tspike')} reads up to "
            f"{SCHEMA_VERSION}; upgrade lightning-tspike"
        )
    expected: Mapping[str, Any] = _V3 if schema == 3 else _V2
    if unknown := sorted(config.keys() - expected.keys() - {"schema_version", "library_version"}):
        raise FolderError(f"{file}: unknown entries {unknown} for schema version {schema}")
    if schema == 3 and seal(config)["sha256"] != config.get("sha256"):
        raise FolderError(
            f"{file} was changed after it was written: 'sha256' does not fit its contents; export or download the "
            "folder again"
        )
    for added_by, defaults in _ADDED.items():
        if added_by > schema:
            config = {**defaults, **config}
    for key, kind in expected.items():
        if not isinstance(config.get(key, ...), kind):
            raise FolderError(f"{file}: {key!r} is missing or not understood, got {config.get(key)!r}")
    try:
        config = {**config, **{key: plain(config[key]) for key in expected}}
        check_preprocessing(config["preprocessing"])
        check_label_names(config["label_names"], config["network"].get("num_classes", 1000))
    except ValueError as error:
        raise FolderError(f"{file} {error}") from error
    _check_files(config, file)
    return config


def precisions_in(config: Mapping[str, Any]) -> list[Precision]:
    """At which precisions a folder has weights, the most precise first; before schema version 3 there was but one."""
    return [known for known in PRECISIONS if known in config["weights"]] or ["float32"]


def _check_files(config: Mapping[str, Any], file: Path) -> None:
    if config["schema_version"] == SCHEMA_VERSION and not config["weights"]:
        raise FolderError(f"{file}: 'weights' names no file")
    for precision, facts in config["weights"].items():
        if precision not in PRECISIONS or not isinstance(facts, dict) or facts.keys() != {"sha256", "size"}:
            raise FolderError(f"{file}: 'weights' must have 'sha256' and 'size' for each of {list(PRECISIONS)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys must differ: readers disagree on which of two to take."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(f"an object has a key twice, keys are {sorted(key for key, _ in pairs)}")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
