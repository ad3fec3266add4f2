"""The command ``tspike``. Training commands are LightningCLI's; this file only finds recipes and lists the zoo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from . import zoo

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point.

    ``tspike fit|validate|test|predict ...`` is a LightningCLI; its ``--config`` also takes the name of a recipe that
    comes with the package. ``tspike zoo list [PATTERN]`` shows the zoo.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] == ["zoo"]:
            _zoo(words[1:])
        else:
            # LightningCLI reads the words here, and so does Lightning when it starts further processes.
            sys.argv[1:] = _with_recipe_paths(words)
            from .training import run_training_cli  # imports torch and lightning

            run_training_cli()
    except zoo.ZooError as error:
        sys.exit(f"tspike: {error}")


def _with_recipe_paths(words: Sequence[str]) -> list[str]:
    """``--config digits`` becomes ``--config .../digits.yaml`` where there is no file of that name."""
    paths, is_config = [], False
    for word in words:
        prefix, value = ("--config=", word[len("--config=") :]) if word.startswith("--config=") else ("", word)
        if (prefix or is_config) and not Path(value).is_file() and Path(value).name == value and not Path(value).suffix:
            value = str(zoo.recipe_path(value))
        paths.append(prefix + value)
        is_config = word in ("--config", "-c")
    return paths


def _zoo(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="tspike zoo", description="The model zoo.")
    commands = parser.add_subparsers(dest="command", required=True)
    list_parser = commands.add_parser("list", help="list the entries")
    list_parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. '*resnet*'")
    options = parser.parse_args(words)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "T", "status", "test accuracy", "recipe"):
        table.add_column(column, no_wrap=True)  # 80 characters are enough: names are there to be copied
    for entry in map(zoo.info, zoo.list(options.pattern)):
        accuracy = entry.metrics.get("test/acc1")
        table.add_row(
            entry.name,
            str(entry.timesteps),
            entry.status,
            "" if accuracy is None else f"{100 * accuracy:.2f} %",
            entry.recipe,
        )
    Console().print(table)
