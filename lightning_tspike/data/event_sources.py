"""Recordings of event cameras by tonic: which there are, where their files lie, and how they are split."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

__all__ = ["Recordings", "find_dataset", "open_recordings", "split_last"]

# what is expected where, for those whose files have a layout of their own
_LAYOUTS = {
    "NMNIST": "NMNIST/Train/DIGIT/*.bin and NMNIST/Test/DIGIT/*.bin",
    "CIFAR10DVS": "CIFAR10DVS/CLASS/*.aedat4",
    "DVSGesture": "DVSGesture/ibmGestureTrain/USER_LIGHTING/LABEL.npy and DVSGesture/ibmGestureTest/...",
}
# bytes of one event in files that are nothing but events: a file cut off in the midst of one is told by its size
_RECORD_BYTES = {"NMNIST": 5}


def find_dataset(name: str) -> type[Any]:
    """A dataset class by its name in ``tonic.datasets``, or by class path.

    Raises:
        ModuleNotFoundError: tonic is not installed.
        ValueError: There is no such class, or it is none of tonic's datasets.
    """
    try:
        import tonic
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("event data needs tonic: pip install 'lightning-tspike[events]'") from error
    module, _, kind = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), kind) if module else getattr(tonic.datasets, kind, None)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no dataset class {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, tonic.dataset.Dataset)):
        known = sorted(n for n, kind in vars(tonic.datasets).items() if inspect.isclass(kind))
        raise ValueError(f"{name!r} is no dataset of tonic; expected a class path, or one of {', '.join(known)}")
    return found


class Recordings:
    """One split of a dataset of tonic: (events, label) by index, sorted by file, labels numbered from 0.

    Args:
        dataset: An instance of one of tonic's datasets.
        classes: The labels in order, where they were found before in another split.
    """

    def __init__(self, dataset: Any, classes: Sequence[Any] | None = None) -> None:
        self.dataset = dataset
        files = dataset.data
        self.has_files = all(isinstance(file, (str, os.PathLike)) for file in files)
        # tonic walks through folders in the file system's order, which differs between machines
        self.order = list(range(len(dataset.targets)))
        if self.has_files:
            self.order.sort(key=lambda i: natural_key(str(files[i])))
        self.labels = list(classes) if classes is not None else sorted(set(dataset.targets))
        numbers = {label: number for number, label in enumerate(self.labels)}
        self.targets = [numbers.get(dataset.targets[i], -1) for i in self.order]

    @property
    def class_names(self) -> list[str]:
        """What the dataset calls its labels, otherwise the labels themselves."""
        known = getattr(self.dataset, "classes", None)
        if isinstance(known, Mapping):
            names = {label: name for name, label in known.items()}
        else:
            names = dict(enumerate(known if isinstance(known, Sequence) else ()))
        return [str(names.get(label, label)) for label in self.labels]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file = self.dataset.data[self.order[index]]
        size = _RECORD_BYTES.get(type(self.dataset).__name__)
        if size and self.has_files and (length := os.path.getsize(file)) % size:
            raise ValueError(f"{length} bytes are no whole number of events of {size} bytes: the file is cut off")
        return self.dataset[self.order[index]][0], self.targets[index]

    def filename(self, index: int) -> str:
        if self.has_files:
            return str(self.dataset.data[self.order[index]])
        return f"recording {index} of {type(self.dataset).__name__}"

    def fingerprint(self) -> str:
        """Changes with the files: their names, sizes and times of last change."""
        digest = hashlib.sha256(repr(self.targets).encode())
        if self.has_files:
            for i in self.order:
                stat = os.stat(self.dataset.data[i])
                digest.update(f"{self.dataset.data[i]} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def open_recordings(kind: type[Any], root: str, *, download: bool) -> tuple[Recordings, Recordings | None]:
    """Training and test recordings; None for the latter where the dataset has no split of its own.

    Without ``download`` whatever recordings are in the folder are taken: tonic would fetch a dataset again of which a
    part is missing.

    Raises:
        FileNotFoundError: There are none, and ``download`` is off or did not work.
    """
    trusting = type(kind.__name__, (kind,), {"_check_exists": lambda self: True})  # tonic's folder has the class's name
    has_split = "train" in inspect.signature(kind).parameters
    opened = kind if download else trusting
    folder = Path(root).expanduser().resolve() / kind.__name__
    expected = _LAYOUTS.get(kind.__name__, f"{kind.__name__}/*, as tonic unpacks them")
    way_out = "put them there, or let tonic fetch them with download=true"
    try:
        parts = [opened(root, train=train) for train in (True, False)] if has_split else [opened(root)]
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise FileNotFoundError(
            f"no {kind.__name__} in {folder}: expected {expected} in {Path(root).resolve()}; {way_out} ({error})"
        ) from error
    for part, name in zip(parts, ("training", "test"), strict=False):
        part.__class__ = kind  # one that loader processes can import
        if not len(part.targets):
            raise FileNotFoundError(
                f"no {name} recordings of {kind.__name__} in {folder}: expected {expected} in "
                f"{Path(root).resolve()}; {way_out}"
            )
    train = Recordings(parts[0])
    return train, Recordings(parts[1], train.labels) if has_split else None


def split_last(targets: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Split indices class by class: the last ``share`` of each class's recordings, at least one, and those before.

    Returns:
        Indices of the first and of the last part, each in ascending order.

    Raises:
        ValueError: A class has but one recording.
    """
    first: list[int] = []
    last: list[int] = []
    for label in sorted(set(targets)):
        members = [i for i, target in enumerate(targets) if target == label]
        if len(members) < 2:
            raise ValueError(f"class {label} has {len(members)} recording, and a split needs two at least")
        cut = len(members) - max(1, round(share * len(members)))
        first += members[:cut]
        last += members[cut:]
    return sorted(first), sorted(last)
