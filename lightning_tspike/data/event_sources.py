"""Recordings of event cameras by tonic: which there are, where their files lie, and how they are split."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

from .event_layouts import LAYOUTS, Layout

__all__ = ["Recordings", "find_dataset", "open_recordings", "split_last"]


def find_dataset(name: str) -> type[Any]:
    """A dataset class by its name in ``tonic.datasets``, or by class path.

    Raises:
        ModuleNotFoundError: tonic is not installed.
        ValueError: There is no such class, or it is not one of tonic's datasets.
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
        raise ValueError(
            f"{name!r} is not one of tonic's datasets; expected a class path, or one of {', '.join(known)}"
        )
    return found


class Recordings:
    """One split of a dataset: (events, label) by index, in the natural order of its files, labels numbered from 0.

    Args:
        name: What the dataset is called.
        items: What ``read`` makes events of, one for each recording: its file, or whatever stands for it.
        targets: The label of each.
        read: From an item to events, an array with fields x, y, t, p.
        class_names: What the dataset calls its labels: names in order, or the label of each name; None if it does not.
        classes: The labels in order, where they were found before in another split.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Any],
        targets: Sequence[Any],
        read: Callable[[Any], Any],
        class_names: Sequence[str] | Mapping[str, Any] | None = None,
        classes: Sequence[Any] | None = None,
    ) -> None:
        self.name, self.read = name, read
        self.has_files = all(isinstance(item, (str, os.PathLike)) for item in items)
        # folders are walked in the file system's order, which differs between machines
        order = sorted(range(len(items)), key=lambda i: natural_key(str(items[i]))) if self.has_files else None
        self.items = [items[i] for i in order or range(len(items))]
        self.labels = list(classes) if classes is not None else sorted(set(targets))
        numbers = {label: number for number, label in enumerate(self.labels)}
        self.targets = [numbers.get(targets[i], -1) for i in order or range(len(items))]
        self._known = class_names

    @property
    def class_names(self) -> list[str]:
        """What the dataset calls its labels, otherwise the labels themselves."""
        if isinstance(self._known, Mapping):
            names = {label: name for name, label in self._known.items()}
        else:
            names = dict(enumerate(self._known if isinstance(self._known, Sequence) else ()))
        return [str(names.get(label, label)) for label in self.labels]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.read(self.items[index]), self.targets[index]

    def filename(self, index: int) -> str:
        return str(self.items[index]) if self.has_files else f"recording {index} of {self.name}"

    def fingerprint(self) -> str:
        """Changes with the files: their names, sizes and times of last change."""
        digest = hashlib.sha256(repr(self.targets).encode())
        if self.has_files:
            for file in self.items:
                stat = os.stat(file)
                digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def open_recordings(kind: type[Any], root: str, *, download: bool) -> tuple[Recordings, Recordings | None]:
    """Training and test recordings; None for the latter where the dataset has no split of its own.

    Of a dataset with a known layout (:data:`lightning_tspike.data.event_layouts.LAYOUTS`), whatever recordings are in
    its folder are taken: tonic would fetch it again if a part were missing, so it is asked only with ``download``.

    Raises:
        FileNotFoundError: There are none, and ``download`` is off or did not work.
    """
    name = kind.__name__
    layout = LAYOUTS.get(name) if _is_of_tonic(kind) else None
    folder = Path(root).expanduser().resolve() / name  # tonic's folder has the class's name
    expected = layout.expected if layout else f"{name}/*, as tonic unpacks them"
    expected = f"expected {expected} in {folder.parent}; put them there, or let tonic fetch them with download=true"
    parts = []
    if download or layout is None:
        if not download and _is_of_tonic(kind) and not folder.is_dir():  # tonic would fetch it
            raise FileNotFoundError(f"no {name} in {folder}: {expected}")
        has_split = "train" in inspect.signature(kind).parameters
        try:
            parts = [kind(root, train=train) for train in (True, False)] if has_split else [kind(root)]
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise FileNotFoundError(f"no {name} in {folder}: {expected} ({error})") from error
    found: list[Recordings] = []
    for split in range(len(layout.splits if layout else parts)):
        classes = found[0].labels if found else None
        if layout:
            recordings = _local(kind, layout, folder / layout.splits[split], classes)
        else:
            recordings = _of_tonic(parts[split], classes)
        if not len(recordings):
            raise FileNotFoundError(f"no {('training', 'test')[split]} recordings of {name} in {folder}: {expected}")
        found.append(recordings)
    return found[0], found[1] if len(found) == 2 else None


def _is_of_tonic(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] == "tonic"


def _local(kind: type[Any], layout: Layout, folder: Path, classes: Sequence[Any] | None) -> Recordings:
    files = list(folder.glob(layout.pattern))
    names = getattr(kind, "classes", None)
    labels = [layout.label(file) for file in files]
    if isinstance(names, Mapping):  # folders bear the names; the numbers behind them give the order
        labels = [names[label] for label in labels]
    return Recordings(kind.__name__, files, labels, layout.read, names, classes)


def _of_tonic(dataset: Any, classes: Sequence[Any] | None) -> Recordings:
    """Recordings as one of tonic's dataset classes reads them."""
    name, names = type(dataset).__name__, getattr(dataset, "classes", None)
    if all(isinstance(item, (str, os.PathLike)) for item in dataset.data):
        index = {str(item): i for i, item in enumerate(dataset.data)}
        return Recordings(name, dataset.data, dataset.targets, partial(_by_file, dataset, index), names, classes)
    return Recordings(name, range(len(dataset.targets)), dataset.targets, partial(_by_index, dataset), names, classes)


def _by_index(dataset: Any, index: int) -> Any:
    return dataset[index][0]


def _by_file(dataset: Any, index: Mapping[str, int], file: Any) -> Any:
    return dataset[index[str(file)]][0]


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
            raise ValueError(f"class {label} has {len(members)} recording, and a split needs at least two")
        cut = len(members) - max(1, round(share * len(members)))
        first += members[:cut]
        last += members[cut:]
    return sorted(first), sorted(last)
