"""``config.json``: everything needed to rebuild a network, except its weights, and what these must be.

In Python it is a :class:`Manifest`; :func:`read_config` reads it and :func:`write_config` writes it. Schema version 4::

    schema_version    4
    library_version   version of lightning-tspike that wrote the folder
    network           the fields of lightning_tspike.models.NetworkConfig
    amplitudes        names of the neurons that keep an amplitude of their own; empty where all are folded away
    standardized      names of convolutions that standardised their weights at each call, and hold the result now
    sum_pools         names of average pools that sum instead
    merged_norms      {name of a batch norm that is gone: name of the layer that has taken it up}
    preprocessing     null where it is not known, or {"input_size": [C, H, W], "mean": [C numbers], "std": [C numbers]};
                      for images that are resized also "interpolation" and "crop_pct"; for event cameras "frames":
                      {"timesteps", "slice_by", "sensor_size"}, and the values are counts of events
    label_names       the K classes' names, or null where they are not known
    weights           {precision: {"sha256", "size" in bytes}} of each file of weights (lightning_tspike.files.weights)
    unfolded          "sha256" of unfolded/config.json, where that folder holds the network before folding, or null
    results           what was measured of the network (lightning_tspike/store/results.py), or null
    sha256            of all the above as JSON with sorted keys and no spaces

So one number, the last, says what the folder holds. Version 3 had neither ``standardized`` nor ``results``, version 2
neither ``label_names`` nor what follows it (a file that was changed could not be told), version 1 neither ``sum_pools``
nor ``merged_norms``. All are still read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files.bounds import check_label_names, plain
from ..files.input_spec import InputSpec
from ..files.weights import PRECISIONS, FolderError, Precision, own_file
from ..network.config import NetworkConfig
from ..network.spiking_network import SpikingNetwork
from .results import Results

__all__ = ["CONFIG", "SCHEMA_VERSION", "Manifest", "WeightsFile", "describe", "read_config", "seal", "write_config"]

SCHEMA_VERSION = 4
CONFIG = "config.json"

_LARGEST = 4 << 20  # bytes; the names of ImageNet's 22k classes take a tenth of it
_V2 = {"network": dict, "amplitudes": list, "sum_pools": list, "merged_norms": dict, "preprocessing": dict | None}
_V3 = {**_V2, "label_names": list | None, "weights": dict, "unfolded": str | None, "sha256": str}
_V4 = {**_V3, "standardized": list, "results": dict | None}
_ENTRIES: dict[int, Mapping[str, Any]] = {1: _V2, 2: _V2, 3: _V3, 4: _V4}  # older ones by their defaults, below
_ADDED: dict[int, dict[str, Any]] = {  # what each schema version has added, as it is where it is missing
    2: {"sum_pools": [], "merged_norms": {}},
    3: {"label_names": None, "weights": {}, "unfolded": None, "sha256": None},
    4: {"standardized": [], "results": None},
}


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights must be.

    Attributes:
        sha256: Of its contents.
        size: In bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """The contents of ``config.json``, of whatever schema version the file is.

    Attributes:
        network: What the network is built from.
        amplitudes: Names of the neurons that keep an amplitude of their own; empty where all are folded away.
        standardized: Names of convolutions that standardised their weights at each call, and hold the result now.
        sum_pools: Names of average pools that sum instead.
        merged_norms: Name of a batch norm that is gone -> name of the layer that has taken it up.
        preprocessing: What the network's input is, or None where it is not known.
        label_names: Names of the K classes, or None where they are not known.
        weights: What each file of weights must be, by precision; empty where that is not known (before version 3).
        unfolded: ``sha256`` of the configuration in ``unfolded/``, where that folder holds the network before folding.
        results: What was measured of the network, where it was.
        library_version: Of the lightning-tspike that wrote the file.
        sha256: What says that the file is unchanged and which one it is; None before version 3.
    """

    network: NetworkConfig
    amplitudes: tuple[str, ...] = ()
    standardized: tuple[str, ...] = ()
    sum_pools: tuple[str, ...] = ()
    merged_norms: Mapping[str, str] = field(default_factory=dict)
    preprocessing: InputSpec | None = None
    label_names: tuple[str, ...] | None = None
    weights: Mapping[Precision, WeightsFile] = field(default_factory=dict)
    unfolded: str | None = None
    results: Results | None = None
    library_version: str | None = None
    sha256: str | None = None

    @property
    def precisions(self) -> list[Precision]:
        """At which precisions there are weights, the most precise first; before schema version 3 there was but one."""
        return [known for known in PRECISIONS if known in self.weights] or ["float32"]

    def to_dict(self) -> dict[str, Any]:
        """What stands in the file, as of our own schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "library_version": self.library_version,
            "network": asdict(self.network),
            "amplitudes": list(self.amplitudes),
            "standardized": list(self.standardized),
            "sum_pools": list(self.sum_pools),
            "merged_norms": dict(self.merged_norms),
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing is not None else None,
            "label_names": list(self.label_names) if self.label_names is not None else None,
            "weights": {precision: asdict(file) for precision, file in self.weights.items()},
            "unfolded": self.unfolded,
            "results": self.results.to_dict() if self.results is not None else None,
            "sha256": self.sha256,
        }


def describe(
    network: SpikingNetwork,
    *,
    preprocessing: InputSpec | None,
    label_names: Sequence[str] | None,
    weights: Mapping[Precision, WeightsFile],
    unfolded: str | None,
    results: Results | None = None,
) -> Manifest:
    """The manifest of a network that has a ``config``."""
    config: Any = network.config
    manifest = Manifest(
        network=config,
        amplitudes=tuple(name for name, neuron in network.neurons().items() if neuron.raw_amplitude is not None),
        standardized=tuple(network.rewrites.standardized),
        sum_pools=tuple(network.rewrites.sum_pools),
        merged_norms=dict(network.rewrites.merged_norms),
        preprocessing=preprocessing,
        label_names=tuple(label_names) if label_names is not None else None,
        weights=dict(weights),
        unfolded=unfolded,
        results=results,
        library_version=version("lightning-tspike"),
    )
    return replace(manifest, sha256=seal(manifest.to_dict())["sha256"])


def seal(config: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a ``config.json`` with their ``sha256``."""
    contents = {key: value for key, value in config.items() if key != "sha256"}
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"))
    return {**contents, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write_config(manifest: Manifest, file: Path) -> None:
    """Write ``config.json``."""
    file.write_text(json.dumps(manifest.to_dict(), indent=2) + "\n", encoding="utf-8")


def read_config(file: Path) -> Manifest:
    """Read ``config.json`` of any schema version up to ours.

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
    expected = _ENTRIES[schema]
    if unknown := sorted(config.keys() - expected.keys() - {"schema_version", "library_version"}):
        raise FolderError(f"{file}: unknown entries {unknown} for schema version {schema}")
    if schema >= 3 and seal(config)["sha256"] != config.get("sha256"):
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
    if schema >= 3 and not config["weights"]:
        raise FolderError(f"{file}: 'weights' names no file")
    try:
        return _manifest_of({**config, **{key: plain(config[key]) for key in expected}})
    except ValueError as error:
        raise FolderError(f"{file} {error}") from error


def _manifest_of(config: dict[str, Any]) -> Manifest:
    """Check the entries and make the manifest of them; a ValueError names what is wrong."""
    network = _network_of(config["network"])
    for key in ("amplitudes", "standardized", "sum_pools"):
        if not all(isinstance(name, str) for name in config[key]):
            raise ValueError(f"describes no network that can be built: {key!r} must be names, got {config[key]!r}")
    if not all(isinstance(name, str) for name in config["merged_norms"].values()):
        raise ValueError(f"describes no network that can be built: 'merged_norms' got {config['merged_norms']!r}")
    names = check_label_names(config["label_names"], network.num_classes)
    spec = InputSpec.of(config["preprocessing"]) if config["preprocessing"] is not None else None
    if spec is not None and spec.input_size is not None and spec.input_size[0] != network.in_chans:
        raise ValueError(f"has an 'input_size' of {spec.input_size[0]} channels, its network takes {network.in_chans}")
    library_version = config.get("library_version")
    return Manifest(
        network=network,
        amplitudes=tuple(config["amplitudes"]),
        standardized=tuple(config["standardized"]),
        sum_pools=tuple(config["sum_pools"]),
        merged_norms=config["merged_norms"],
        preprocessing=spec,
        label_names=tuple(names) if names is not None else None,
        weights={precision: _weights_file_of(precision, facts) for precision, facts in config["weights"].items()},
        unfolded=config["unfolded"],
        results=Results.from_dict(config["results"]) if config["results"] is not None else None,
        library_version=library_version if isinstance(library_version, str) else None,
        sha256=config["sha256"],
    )


def _network_of(entries: dict[str, Any]) -> NetworkConfig:
    known = {entry.name for entry in fields(NetworkConfig)}
    if unknown := sorted(set(entries) - known):
        raise ValueError(f"has unknown entries {unknown} in 'network', expected {sorted(known)}")
    try:
        return NetworkConfig(**entries)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"describes no network that can be built: {error}") from error


def _weights_file_of(precision: str, facts: Any) -> WeightsFile:
    is_known = precision in PRECISIONS and isinstance(facts, dict) and facts.keys() == {"sha256", "size"}
    if not is_known or not isinstance(facts["sha256"], str) or type(facts["size"]) is not int:
        raise ValueError(f"has 'weights' that are not 'sha256' and 'size' for each of {list(PRECISIONS)}")
    return WeightsFile(**facts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys must differ: readers disagree on which of two to take."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(f"an object has a key twice, keys are {sorted(key for key, _ in pairs)}")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
