"""What the zoo has: its entries, their recipes and the weights that come with the package. Needs no torch."""

from __future__ import annotations

import difflib
import fnmatch
import json
import statistics
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from . import entries
from .entries import ZooEntry

__all__ = [
    "ZooError", "find_entry", "info", "list_entries", "over_seeds", "recipe_files", "recipe_path", "shipped_facts",
    "shipped_weights",
]  # fmt: skip


class ZooError(LookupError):
    """There is no such entry, or it has no weights yet; the message says what there is."""


def list_entries(pattern: str = "*", status: Literal["trained", "planned"] | None = None) -> list[str]:
    """Names of the entries in alphabetical order.

    Args:
        pattern: A shell pattern such as ``"*resnet*"``.
        status: Only those that are ``"trained"`` or ``"planned"``.

    Raises:
        ValueError: There is no such status.
    """
    if status not in (None, "trained", "planned"):
        raise ValueError(f"status must be 'trained', 'planned' or None, got {status!r}")
    named = (entry.name for entry in entries.ENTRIES if status in (None, entry.status))
    return sorted(fnmatch.filter(named, pattern))


def info(name: str) -> ZooEntry:
    """The entry of this name, or of this architecture and tag (``"tspike_resnet_small.digits"``).

    Raises:
        ZooError: There is none; the message has close names.
    """
    if (entry := find_entry(name)) is not None:
        return entry
    close = difflib.get_close_matches(name, _names(), n=3, cutoff=0.4)
    there = ", ".join(map(repr, close or list_entries()))
    raise ZooError(f"the zoo has no entry {name!r}; " + (f"did you mean {there}?" if close else f"there are {there}"))


def find_entry(name: str) -> ZooEntry | None:
    """As :func:`info`, but None where there is no such entry."""
    return _names().get(name)


def recipe_files() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted((_zoo() / "recipes").glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe that comes with the package.

    Raises:
        ZooError: There is none of that name; the message has close names.
    """
    recipes = recipe_files()
    if name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=3) or list(recipes)
    raise ZooError(f"there is no recipe {name!r}; did you mean {', '.join(map(repr, close))}?")


def shipped_weights(entry: ZooEntry) -> Path | None:
    """The folder with an entry's network, where it comes with the package."""
    folder = _zoo() / "weights" / entry.name
    return folder if folder.is_dir() else None


def shipped_facts(entry: ZooEntry) -> dict[str, Any]:
    """What ``config.json`` says of an entry that comes with the package; empty of others.

    ``"weights"`` and ``"results"`` of schema version 4, see :mod:`lightning_tspike.store.manifest`; read as plain JSON,
    which takes no torch.
    """
    folder = shipped_weights(entry)
    return {} if folder is None else json.loads((folder / "config.json").read_text(encoding="utf-8"))


def over_seeds(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean and standard deviation of the top-1 accuracies over all seeds, of ``"results"`` in ``config.json``.

    In the most precise weights, as the other seeds are measured; None where there is but one.
    """
    every = (next(iter(results["top1"].values())), *results["seeds"])
    return (statistics.fmean(every), statistics.stdev(every)) if len(every) > 1 else None


def _names() -> dict[str, ZooEntry]:
    """The entries by all that they are called."""
    return {key: entry for entry in entries.ENTRIES for key in (entry.name, f"{entry.architecture}.{entry.tag}")}


def _zoo() -> Path:
    """The folder with recipes and weights, found without importing the zoo, which stands above the store."""
    spec = find_spec("lightning_tspike.zoo")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("lightning_tspike.zoo is missing: install lightning-tspike again")
    return Path(spec.origin).parent
