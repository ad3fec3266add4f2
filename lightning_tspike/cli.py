"""The command ``tspike``. Training commands are LightningCLI's; the zoo's are in ``zoo_cli.py``, the others here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import zoo
from .zoo_cli import predict, recipe_data, run_zoo

if TYPE_CHECKING:
    from .ternarize import SpikingNetwork

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point.

    ``tspike fit|validate|test|predict ...`` is a LightningCLI; its ``--config`` also takes the name of a recipe that
    comes with the package. ``tspike data check RECIPE`` reads a recipe's data once; ``tspike report RUN_DIR`` draws
    what a run has logged; ``tspike fold CKPT`` folds a checkpoint, ``tspike import-official CKPT`` one of the paper
    authors' code; ``tspike zoo ...`` and ``tspike predict --model NAME IMAGE...`` use the zoo.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] == ["zoo"]:
            run_zoo(words[1:])
        elif words[:1] == ["predict"] and any(word.split("=")[0] == "--model" for word in words):
            predict(words[1:])
        elif words[:1] == ["fold"]:
            _fold(words[1:])
        elif words[:1] == ["import-official"]:
            _import_official(words[1:])
        elif words[:1] == ["report"]:
            _report(words[1:])
        elif words[:1] == ["data"]:
            _data(words[1:])
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


def _fold(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tspike fold",
        description="Fold a checkpoint: its spike amplitudes vanish into weights and thresholds. The fold is verified "
        "in float64, shown as tables, and written as a folder (network and fold_report.json) that zoo.load reads.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a training run, or a folder with a network")
    parser.add_argument("-o", "--output", type=Path, help="folder to write; default: the checkpoint's, .folded")
    parser.add_argument("--integer-pools", action="store_true", help="average pools of spikes sum instead")
    parser.add_argument("--merge-bn", action="store_true", help="batch norms become part of the layers before them")
    options = parser.parse_args(words)
    output = options.output or options.checkpoint.with_suffix(".folded")
    if output.exists() and output.resolve() == options.checkpoint.resolve():
        parser.error(f"{output} is the folder to be read; name another one with --output")

    from .checkpoint import read_checkpoint  # these import torch
    from .folder import read_folder

    try:
        if options.checkpoint.is_dir():
            network, config = read_folder(options.checkpoint)
            facts = {key: config[key] for key in ("preprocessing", "label_names")}
        else:
            saved = read_checkpoint(options.checkpoint)
            network = saved.network
            facts = {"preprocessing": saved.preprocessing, "label_names": saved.label_names}
    except (ValueError, OSError) as error:  # CheckpointError, FolderError
        sys.exit(f"tspike: {error}")
    _write_folded(network, output, facts, integer_pools=options.integer_pools, merge_bn=options.merge_bn)


def _import_official(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tspike import-official",
        description="Fold a network trained with the code of the ternary spike's authors "
        "(github.com/yfguo91/Ternary-Spike) and write it as a folder that zoo.load reads. The backbone is found from "
        "the names and shapes of the weights.",
    )
    parser.add_argument("checkpoint", type=Path, help="file with a state_dict or a checkpoint, such as .pth")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder to write; default: the file's name, ending in .folded"
    )
    parser.add_argument("--timesteps", type=int, default=4, help="time steps T it was trained with; default: 4")
    options = parser.parse_args(words)

    from .models.official import import_official  # imports torch

    try:
        network = import_official(options.checkpoint, options.timesteps)
    except ValueError as error:
        sys.exit(f"tspike: {error}")
    _write_folded(network, options.output or options.checkpoint.with_suffix(".folded"), {})


def _report(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tspike report",
        description="Draw what a training run has logged: learning curves, amplitudes, membrane potentials, firing "
        "rates, energy and fold, as one HTML file that needs nothing else.",
    )
    parser.add_argument("run", type=Path, help="folder of the run, with metrics.csv or TensorBoard's event files")
    parser.add_argument("-o", "--output", type=Path, help="file to write; default: report.html in that folder")
    options = parser.parse_args(words)

    from .html_report import ReportError, write_report

    try:
        print(write_report(options.run, options.output))
    except (ReportError, OSError) as error:
        sys.exit(f"tspike: {error}")


def _data(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="tspike data", description="The data that networks are trained on.")
    commands = parser.add_subparsers(dest="command", required=True)
    check_parser = commands.add_parser(
        "check",
        help="read a recipe's data once and say what is in it",
        description="Read every sample of a recipe's data once: counts per class, shapes, range of values, time per "
        "sample, and files that cannot be read. Options such as --data.root=PATH change the recipe. Ends with status "
        "1 where a sample cannot be read.",
    )
    check_parser.add_argument("recipe", help="name of a recipe, or a YAML file with a section 'data'")
    options, changes = parser.parse_known_args(words)

    from .data.check import check_data, tables  # imports torch

    try:
        data = recipe_data(options.recipe, changes)
        found = check_data(data)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"tspike: {error}")
    print(tables(found, data))
    if any(check.unreadable for check in found.values()):
        sys.exit(1)


def _write_folded(
    network: SpikingNetwork,
    output: Path,
    facts: Mapping[str, Any],
    *,
    integer_pools: bool = False,
    merge_bn: bool = False,
) -> None:
    """Fold a network, write it and say what has been done."""
    from .fold import FoldError, fold
    from .folder import write_folder

    try:
        folded, report = fold(network, integer_pools=integer_pools, merge_bn=merge_bn)
        write_folder(output, folded, report=report, **facts)
    except (FoldError, OSError) as error:
        sys.exit(f"tspike: {error}")
    print(f"{report.details()}\nwritten: {output}")
