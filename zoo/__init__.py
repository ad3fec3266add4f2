"""The model zoo: folded networks by name or from a folder.

from lightning_tspike import zoo

zoo.list()                         # names of all entries
zoo.info("tspike-digits")          # one entry: architecture, recipe, measured accuracy
zoo.load("tspike-digits")          # its network, folded, in eval mode
zoo.load("runs/digits/version_0/checkpoints/best.folded")
"""

from __future__ import annotations

import builtins
import difflib
import fnmatch
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .entries import ENTRIES, ZooEntry

if TYPE_CHECKING:
    from ..ternarize import SpikingNetwork

__all__ = ["ZooEntry", "ZooError", "info", "list", "load", "recipe_path"]

_HERE = Path(__file__).parent


class ZooError(LookupError):
    """There is no such entry, or it has no weights yet; the message says what there is."""


def list(pattern: str = "*") -> builtins.list[str]:
    """Names of the entries that match a shell pattern such as ``"*resnet*"``, in alphabetical order."""
    return sorted(fnmatch.filter((entry.name for entry in ENTRIES), pattern))


def info(name: str) -> ZooEntry:
    """The entry of this name.

    Raises:
        ZooError: There is none; the message has close names.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    close = difflib.get_close_matches(name, list(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"there are {', '.join(map(repr, list()))}"
    raise ZooError(f"the zoo has no entry {name!r}; {hint}")


def load(name_or_path: str | os.PathLike[str]) -> SpikingNetwork:
    """Load a network, ready to classify.

    Args:
        name_or_path: Name of an entry, or a folder that FoldExport or ``write_folder`` wrote. A name of the zoo is
            never taken for a folder; write ``./NAME`` for a folder of that name.

    Returns:
        The network, folded, in eval mode on the CPU: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, K].

    Raises:
        ZooError: No such entry and no such folder, or the entry is planned and has no weights yet.
        lightning_tspike.folder.FolderError: The folder is incomplete or damaged.
    """
    from ..folder import read_folder

    name = os.fspath(name_or_path)
    if name not in list():
        if Path(name).is_dir():
            return read_folder(name)[0]
        if Path(name).is_file():
            raise ZooError(f"{name} is a file; load the folder that holds the folded network, such as NAME.folded")
        if os.sep in name:
            raise ZooError(f"there is no folder {Path(name).resolve()}")
    entry = info(name)
    if entry.source is None:
        raise ZooError(
            f"{name!r} is planned: its weights do not exist yet. The recipe {entry.recipe!r} trains it: "
            f"tspike fit --config {entry.recipe}  ({recipe_path(entry.recipe)})"
        )
    return read_folder(_HERE / "weights" / entry.name)[0]


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe that comes with the package.

    Raises:
        ZooError: There is none of that name; the message has close names.
    """
    recipes = {path.stem: path for path in sorted((_HERE / "recipes").glob("*.yaml"))}
    if name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=3) or builtins.list(recipes)
    raise ZooError(f"there is no recipe {name!r}; did you mean {', '.join(map(repr, close))}?")
