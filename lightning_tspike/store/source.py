"""Where a network comes from: a folder, a checkpoint, an entry of the zoo, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from ..files.bounds import MOST_FOLDED_TIMESTEPS
from ..files.input_spec import InputSpec
from ..files.weights import FILES, FolderError, Precision
from ..folding.absorb import fold
from ..network.spiking_network import SpikingNetwork
from .catalog import ZooError, find_entry, info, recipe_path, shipped_weights
from .checkpoint import SavedNetwork, read_checkpoint
from .folder import CARD, CONFIG, UNFOLDED, read_folder, read_manifest, read_network, timm_cfg
from .hub import HubError, fetch
from .manifest import Manifest, describe

__all__ = ["CheckpointSource", "FolderSource", "HubSource", "Needs", "Source", "open_path", "open_source"]

Needs = Literal["config", "card", "weights", "unfolded", "all"]
T = TypeVar("T")


def open_source(name_or_path: str | os.PathLike[str]) -> Source:
    """Say what a name or a path stands for; nothing is read or fetched yet.

    Names of the zoo go first, then what is on disk, then repositories.

    Args:
        name_or_path: Name of an entry; ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hugging Face Hub; a network's
            folder; or a checkpoint.

    Raises:
        ZooError: There is nothing of that name, or the entry is planned and has no weights yet.
    """
    name = os.fspath(name_or_path)
    if (entry := find_entry(name)) is not None:
        if (shipped := shipped_weights(entry)) is not None:
            return FolderSource(shipped, entry.sha256, entry.precision)
        if entry.repo_id and entry.revision:
            return HubSource(entry.repo_id, entry.revision, entry.sha256, entry.precision)
        raise ZooError(
            f"{name!r} is planned: its weights do not exist yet. The recipe {entry.recipe!r} trains it: "
            f"tspike fit --config {entry.recipe}  ({recipe_path(entry.recipe)})"
        )
    if Path(name).exists():
        return open_path(name)
    if os.sep not in name and "/" not in name:
        info(name)  # raises, with close names
    if (repository := _repository(name)) is not None:
        return HubSource(*repository, folder_of_that_name=Path(name).resolve())
    raise ZooError(f"there is no folder and no checkpoint {Path(name).resolve()}")


def open_path(path: str | os.PathLike[str]) -> FolderSource | CheckpointSource:
    """As :func:`open_source` of what is on disk, whatever else bears that name: a folder, or else a checkpoint."""
    path = Path(path)
    return FolderSource(path) if path.is_dir() else CheckpointSource(path)


class Source(ABC):
    """A network that can be read."""

    @abstractmethod
    def read(
        self, *, folded: bool = True, precision: Precision | None = None, model: nn.Module | None = None
    ) -> tuple[SpikingNetwork, Manifest]:
        """The network in eval mode on the CPU, and its manifest; for arguments and errors see ``zoo.load``."""

    @abstractmethod
    def read_input_spec(self) -> InputSpec | None:
        """What the network's input is, None where it is not known; no weights are fetched for it."""

    @abstractmethod
    def fetch(self, needs: Needs) -> tuple[Path, Manifest]:
        """The network's folder on disk, fetched from the Hub if need be, and its manifest.

        Args:
            needs: What is to be there beside ``config.json``: nothing (``"config"``), the ``"card"``, the most precise
                ``"weights"``, the ``"unfolded"`` network, or ``"all"``.

        Raises:
            ZooError: It is a checkpoint, which has no folder.
        """


@dataclass(frozen=True)
class FolderSource(Source):
    """A network's folder.

    Attributes:
        path: The folder.
        sha256: What the ``sha256`` of its manifest must be, where the zoo knows it.
        precision: Which weights are read where nothing else is asked for; None for the most precise.
    """

    path: Path
    sha256: str | None = None
    precision: Precision | None = None

    def read(
        self, *, folded: bool = True, precision: Precision | None = None, model: nn.Module | None = None
    ) -> tuple[SpikingNetwork, Manifest]:
        return _read(*self.fetch("config"), folded, precision or self.precision, model)

    def read_input_spec(self) -> InputSpec | None:
        return self.fetch("config")[1].preprocessing

    def fetch(self, needs: Needs) -> tuple[Path, Manifest]:
        return self.path, read_manifest(self.path, sha256=self.sha256)

    def read_saved(self) -> SavedNetwork:
        """The network as it is, folded or not, and what is known of its input and its classes."""
        network, manifest = self.read()
        return SavedNetwork(network, manifest.preprocessing, manifest.label_names)


@dataclass(frozen=True)
class HubSource(Source):
    """A network's folder in a repository on the Hugging Face Hub.

    Attributes:
        repo_id: ``ORG/NAME``.
        revision: Commit, tag or branch.
        sha256: What the ``sha256`` of its manifest must be, where the zoo knows it.
        precision: As for FolderSource.
        folder_of_that_name: What is not there, where a user may have meant a folder on disk.
    """

    repo_id: str
    revision: str
    sha256: str | None = None
    precision: Precision | None = None
    folder_of_that_name: Path | None = None

    def read(
        self, *, folded: bool = True, precision: Precision | None = None, model: nn.Module | None = None
    ) -> tuple[SpikingNetwork, Manifest]:
        needs: Needs = "weights" if folded else "unfolded"
        precision = precision or self.precision
        return self._use(lambda folder, manifest: _read(folder, manifest, folded, precision, model), needs, precision)

    def read_input_spec(self) -> InputSpec | None:
        return self.fetch("config")[1].preprocessing

    def fetch(self, needs: Needs) -> tuple[Path, Manifest]:
        return self._use(lambda folder, manifest: (folder, manifest), needs)

    def _use(self, use: Callable[[Path, Manifest], T], needs: Needs, precision: Precision | None = None) -> T:
        """Fetch and use; where a file in the cache is damaged, or was on its way, fetch it again, once."""
        try:
            return use(*self._fetch(needs, precision))
        except FolderError:
            return use(*self._fetch(needs, precision, again=True))

    def _fetch(self, needs: Needs, precision: Precision | None, again: bool = False) -> tuple[Path, Manifest]:
        try:
            folder = fetch(self.repo_id, self.revision, [CONFIG], again=again)
            manifest = read_manifest(folder, sha256=self.sha256)
            names = _names_of(needs, manifest, precision)
            if names:
                fetch(self.repo_id, folder.name, names, again=again)  # of the same commit
        except HubError as error:
            if self.folder_of_that_name is None:
                raise
            raise HubError(f"{error} (nor is there a folder {self.folder_of_that_name})") from error
        return folder, manifest


@dataclass(frozen=True)
class CheckpointSource(Source):
    """A checkpoint of TernarySNNModule.

    Attributes:
        path: The file.
    """

    path: Path

    def read(
        self, *, folded: bool = True, precision: Precision | None = None, model: nn.Module | None = None
    ) -> tuple[SpikingNetwork, Manifest]:
        if precision not in (None, "float32"):
            raise ZooError(
                f"{self.path} is a checkpoint, whose weights are float32: precision={precision!r} is for folders"
            )
        network, spec, label_names, _ = read_checkpoint(self.path, model=model)
        if folded and network.timesteps > MOST_FOLDED_TIMESTEPS:
            raise ZooError(
                f"{self.path} has {network.timesteps} timesteps, and folding runs them all: above "
                f"{MOST_FOLDED_TIMESTEPS} only if you say so; load it with folded=False and call lightning_tspike.fold"
            )
        with torch.inference_mode(False):
            network = fold(network)[0] if folded else network.eval()
        manifest = describe(network, preprocessing=spec, label_names=label_names, weights={}, unfolded=None)
        network.pretrained_cfg = timm_cfg(manifest)
        return network, manifest

    def read_input_spec(self) -> InputSpec | None:
        return self.read_saved().preprocessing

    def fetch(self, needs: Needs) -> tuple[Path, Manifest]:
        raise ZooError(
            f"{self.path} is a checkpoint, not a network's folder: write one by `tspike fold` or `tspike zoo publish`"
        )

    def read_saved(self) -> SavedNetwork:
        """The network in train mode, and what is known of its input and its classes."""
        return read_checkpoint(self.path)


def _read(
    folder: Path, manifest: Manifest, folded: bool, precision: Precision | None, model: nn.Module | None
) -> tuple[SpikingNetwork, Manifest]:
    if folded:
        return read_network(folder, manifest, precision=precision, model=model), manifest
    if manifest.unfolded is None:
        raise ZooError(f"{folder} holds a network that was published folded alone: load it with folded=True")
    return read_folder(folder / UNFOLDED, sha256=manifest.unfolded, model=model)


def _names_of(needs: Needs, manifest: Manifest, precision: Precision | None) -> list[str]:
    """Files of a folder, beside ``config.json``."""
    there = manifest.precisions
    unfolded = [f"{UNFOLDED}/{CONFIG}", f"{UNFOLDED}/{FILES['float32']}"] if manifest.unfolded else []
    return {
        "config": [],
        "card": [CARD],
        "weights": [FILES[precision if precision in there else there[0]]],
        "unfolded": unfolded,
        "all": [*(FILES[known] for known in there), *unfolded, CARD],
    }[needs]


def _repository(name: str) -> tuple[str, str] | None:
    """``ORG/NAME@REVISION`` as (repository, revision), where it has that form."""
    repo_id, _, revision = name.partition("@")
    parts = repo_id.split("/")
    allowed = all(part and part.strip(".") and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
                  for part in parts)  # fmt: skip
    return (repo_id, revision or "main") if len(parts) == 2 and allowed else None
