"""``tspike fit|validate|test|predict``: LightningCLI's commands. Its parser takes seconds and waits for one of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..zoo import recipe_path
from .commands import Commands, refuse

__all__ = ["add_commands", "is_for_lightning", "run_lightning"]

_LINES = {
    "fit": "train a network by a recipe, fold it and test it",
    "validate": "measure a checkpoint on validation data",
    "test": "measure a checkpoint on test data",
    "predict": "write what a checkpoint predicts for a recipe's data",
}


def add_commands(commands: Commands) -> None:
    """Add the commands whose options LightningCLI knows, ``--help`` among them."""
    for name, line in _LINES.items():
        commands.add(name, _run, line, takes_more=True, add_help=False)


def is_for_lightning(words: Sequence[str]) -> bool:
    """Whether options of LightningCLI come before its command: ``tspike --config FILE fit``."""
    return words[0].split("=")[0] in ("-c", "--config", "--print_config")


def run_lightning(words: Sequence[str]) -> None:
    """Run LightningCLI; its ``--config`` also takes the name of a recipe that comes with the package."""
    from .training import run_training_cli  # imports torch and lightning

    run_training_cli(_with_recipe_paths(words))


def _run(options: argparse.Namespace) -> None:
    given = {word.split("=")[0] for word in options.words}
    if options.words[0] == "predict" and "--model" in given and "--ckpt_path" not in given:
        refuse("tspike predict", "to classify image files, use tspike classify NETWORK IMAGE...")
    run_lightning(options.words)


def _with_recipe_paths(words: Sequence[str]) -> list[str]:
    """``--config digits`` becomes ``--config .../digits.yaml`` where there is no file of that name."""
    paths, is_config = [], False
    for word in words:
        prefix, value = ("--config=", word[len("--config=") :]) if word.startswith("--config=") else ("", word)
        if (prefix or is_config) and not Path(value).is_file() and Path(value).name == value and not Path(value).suffix:
            value = str(recipe_path(value))
        paths.append(prefix + value)
        is_config = word in ("--config", "-c")
    return paths
