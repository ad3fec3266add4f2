"""``tspike data check``, and the data of a recipe for commands that measure on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..zoo import recipe_path
from .commands import Commands, completes

if TYPE_CHECKING:
    from ..data.base import ClassificationDataModule

__all__ = ["add_commands", "recipe_changes", "recipe_data"]


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    data = commands.group("data", "The data that networks are trained on.")
    check = data.add(
        "check",
        _check,
        "read a recipe's data once and say what is in it",
        "Read every sample of a recipe's data once: counts per class, shapes, range of values, time per sample, and "
        "files that cannot be read. Options such as --data.root=PATH change the recipe. Ends with status 1 where a "
        "sample cannot be read.",
        takes_more=True,
    )
    completes("recipes", check.add_argument("recipe", help="name of a recipe, or a YAML file with a section 'data'"))


def recipe_data(recipe: str, changes: Sequence[str]) -> ClassificationDataModule:
    """The datamodule of a recipe, by its name or its file, changed by words such as ``--data.root=PATH``."""
    from ..data.check import datamodule_of  # imports torch

    return datamodule_of(Path(recipe) if Path(recipe).is_file() else recipe_path(recipe), list(changes))


def recipe_changes(options: argparse.Namespace) -> list[str]:
    """The words that change the data of ``--recipe``; all else that was not known is refused."""
    changes: list[str] = options.more
    if unknown := [word for word in changes if not (options.recipe and word.startswith("--data"))]:
        options.command.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return changes


def _check(options: argparse.Namespace) -> None:
    from ..data.check import check_data, tables  # imports torch

    data = recipe_data(options.recipe, options.more)
    found = check_data(data)
    print(tables(found, data))
    if any(check.unreadable for check in found.values()):
        sys.exit(1)
