"""Read a dataset from front to back and say what is in it: ``tspike data check RECIPE``."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader, Dataset

from .._tables import new_table, table_text
from .._waiting import counted
from .base import ClassificationDataModule
from .samples import DataError, Samples, Stream

__all__ = ["SplitCheck", "check_data", "datamodule_of", "tables"]


@dataclass
class SplitCheck:
    """What :func:`check_data` has found in a split.

    Attributes:
        classes: Samples by label.
        shapes: Samples by the shape of the tensor that the network gets.
        low: Smallest value of them all, normalised as for the network.
        high: Largest value.
        seconds: It took to read them.
        unreadable: What was wrong, one text for each sample that could not be read.
    """

    classes: Counter[int] = field(default_factory=Counter)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")
    seconds: float = 0.0
    unreadable: list[str] = field(default_factory=list)


def datamodule_of(recipe: Path, words: list[str]) -> ClassificationDataModule:
    """The datamodule of a recipe.

    Args:
        recipe: A YAML file with a section ``data``.
        words: Options that change it, such as ``--data.root=PATH``.

    Raises:
        ValueError: The recipe has no such section, or a datamodule that is none of this package's.
    """
    section = (yaml.safe_load(recipe.read_text()) or {}).get("data")
    if not section:
        raise ValueError(f"{recipe} has no section 'data'")
    parser = LightningArgumentParser(prog="tspike data check RECIPE")
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    defaults = parser.parse_object({"data": section})
    data = parser.instantiate_classes(parser.parse_args(words, namespace=defaults)).data
    if not isinstance(data, ClassificationDataModule):
        raise ValueError(
            f"{type(data).__name__} is not a datamodule of lightning_tspike.data, so its samples cannot be counted"
        )
    return data


def check_data(data: ClassificationDataModule) -> dict[str, SplitCheck]:
    """Read every sample of every split once, behind a progress bar.

    Returns:
        By the names of the splits, ``"train"``, ``"val"`` and ``"test"``; a split that serves as two is read once.

    Raises:
        FileNotFoundError: There are no files; the message says where they are expected.
    """
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    found: dict[str, SplitCheck] = {}
    seen: dict[int, str] = {}
    for name, part in (("train", data.train_set), ("val", data.val_set), ("test", data.test_set)):
        if id(part) in seen:
            found[name] = found[seen[id(part)]]
            continue
        seen[id(part)] = name
        found[name] = check = SplitCheck()
        start = time.perf_counter()
        for looked in counted(_facts(part, data.num_workers), f"reading {name}", unit="samples", total=len(part)):
            _count(check, looked)
        check.seconds = time.perf_counter() - start
    return found


def tables(found: dict[str, SplitCheck], data: ClassificationDataModule) -> str:
    """What was found, as text: splits, then classes, then samples that cannot be read."""
    overview = new_table("split", "samples", "shape", "values", "ms per sample", "unreadable")
    for name, check in found.items():
        count = sum(check.classes.values())
        shapes = ", ".join("x".join(map(str, shape)) for shape in check.shapes)
        took = f"{1000 * check.seconds / max(1, count + len(check.unreadable)):.2f}"
        values = f"{check.low:.3g} to {check.high:.3g}"
        overview.add_row(name, str(count), shapes, values, took, str(len(check.unreadable)))
    classes = new_table("class", *found)
    for label in range(data.num_classes):
        title = f"{label} {data.class_names[label]}" if data.class_names else str(label)
        classes.add_row(title, *(str(check.classes[label]) for check in found.values()))
    parts = [table_text(table).strip() for table in (overview, classes)]
    faults = dict.fromkeys(fault for check in found.values() for fault in check.unreadable)
    return "\n\n".join([*parts, *faults])


def _facts(part: Samples | Stream, num_workers: int) -> Any:
    if isinstance(part, Stream):
        part.source.set_loader_cfg(num_workers=num_workers)
        return map(_fact, DataLoader(part, batch_size=None, num_workers=num_workers))
    return DataLoader(_Facts(part), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)


class _Facts(Dataset[Any]):
    """(label, shape, lowest, highest) of each sample, or what is wrong with it: little to send between processes."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return _fact(self.samples.read(index))
        except DataError as error:
            return str(error)


def _fact(sample: Any) -> Any:
    x, label = sample
    return int(label), tuple(x.shape), float(x.min()), float(x.max())


def _as_it_is(sample: Any) -> Any:
    return sample


def _count(check: SplitCheck, looked: Any) -> None:
    if isinstance(looked, str):
        check.unreadable.append(looked)
        return
    label, shape, low, high = looked
    check.classes[label] += 1
    check.shapes[shape] += 1
    check.low, check.high = min(check.low, low), max(check.high, high)
