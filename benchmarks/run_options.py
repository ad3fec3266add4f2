"""What the commands that train networks have in common: their options, and the training itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .measuring import RESULTS
from .training_runs import FitRun, train_all

__all__ = ["run_parser", "split_arguments", "train"]


def run_parser(prog: str) -> argparse.ArgumentParser:
    """A parser with the options of trainings."""
    parser = argparse.ArgumentParser(prog=prog, epilog="Options --data... are passed on to tspike fit.")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, with a thread each (default: 2)")
    parser.add_argument("--only", metavar="TEXT", default="", help="only runs whose name has it")
    parser.add_argument(
        "--trainer.precision", dest="precision", metavar="PRECISION",
        help="instead of the recipe's bf16-mixed: 32-true is faster on processors without bfloat16 instructions",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path("runs/narrow"), help="for the runs' own folders")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser


def split_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the words ``--data...``, with paths from anywhere: each training has a folder of its own."""
    options, words = parser.parse_known_args(arguments)
    if unknown := [word for word in words if not word.startswith("--data.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options, [_absolute(word) for word in words]


def train(parser: argparse.ArgumentParser, options: argparse.Namespace, lines: Path, every: Sequence[FitRun]) -> None:
    """Train those of the runs that are asked for and have no line in the file ``lines`` yet."""
    runs = [run for run in every if options.only in run.name]
    if not runs:
        parser.error(f"no run has {options.only!r} in its name, as {every[0].name} has")
    if options.precision:
        runs = [with_option(run, f"--trainer.precision={options.precision}") for run in runs]
    torch.set_num_threads(1)  # a training has the other core
    train_all(runs, lines, options.folder.absolute(), options.jobs)


def with_option(run: FitRun, word: str) -> FitRun:
    """The run, and the ANN that it starts from or learns from, with one more option."""
    ann = None if run.ann is None else with_option(run.ann, word)
    return replace(run, options=(*run.options, word), ann=ann)


def _absolute(word: str) -> str:
    name, _, value = word.partition("=")
    return f"{name}={Path(value).absolute()}" if name == "--data.root" else word
