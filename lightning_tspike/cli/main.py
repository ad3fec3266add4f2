"""The command ``tspike``. Training commands are LightningCLI's; the zoo's are in ``zoo_cli.py``, the others here."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, zoo
from .user_errors import explained
from .zoo import predict, recipe_data, run_zoo

if TYPE_CHECKING:
    from ..network.spiking_network import SpikingNetwork

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; ``tspike --help`` lists the commands.

    ``tspike fit|validate|test|predict ...`` is a LightningCLI; its ``--config`` also takes the name of a recipe that
    comes with the package. Mistakes end with one line on stderr: status 2 where the command line is wrong, otherwise 1.
    """
    words = list(sys.argv[1:] if args is None else args)
    command = words[0] if words else ""
    if command.split("=")[0] in ("-c", "--config", "--print_config"):  # LightningCLI's own, before its command
        command = "fit"
    if command not in _COMMANDS:
        _no_command(words)
    run, _ = _COMMANDS[command]
    with explained():
        run(words)


def _no_command(words: Sequence[str]) -> None:
    """Show the help or the version; refuse all else with status 2."""
    parser = argparse.ArgumentParser(
        prog="tspike",
        usage="tspike COMMAND ...",
        description=_DESCRIPTION,
        epilog="\n".join(["commands:", *(f"  {name:<15}  {text}" for name, (_, text) in _COMMANDS.items()), "", _HINT]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lightning-tspike {__version__}")
    if not words or words[0] == "help":
        words = ["--help"]
    if not words[0].startswith("-"):
        close = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_COMMANDS)}"
        print(f"tspike: there is no command {words[0]!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    parser.parse_args(words[:1])
    parser.error(f"{words[0]} needs a command")


def _train(words: Sequence[str]) -> None:
    if words[0] == "predict" and any(word.split("=")[0] == "--model" for word in words):
        predict(words[1:])
        return
    # LightningCLI reads the words here, and so does Lightning when it starts further processes.
    sys.argv[1:] = _with_recipe_paths(words)
    from .training import run_training_cli  # imports torch and lightning

    run_training_cli()


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
        allow_abbrev=False,
        description="Fold a checkpoint: its spike amplitudes vanish into weights and thresholds. The fold is verified "
        "in float64, shown as tables, and written as a folder (network and fold_report.json) that zoo.load reads.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a training run, or a folder with a network")
    parser.add_argument("-o", "--output", type=Path, help="folder to write; default: the checkpoint's, .folded")
    parser.add_argument("--integer-pools", action="store_true", help="average pools of spikes sum instead")
    parser.add_argument("--merge-bn", action="store_true", help="batch norms become part of the layers before them")
    options = parser.parse_args(words[1:])
    output = options.output or options.checkpoint.with_suffix(".folded")
    if output.exists() and output.resolve() == options.checkpoint.resolve():
        parser.error(f"{output} is the folder to be read; name another one with --output")

    from ..store.source import open_path  # imports torch

    network, preprocessing, label_names = open_path(options.checkpoint).read_saved()
    facts = {"preprocessing": preprocessing, "label_names": label_names}
    _write_folded(network, output, facts, integer_pools=options.integer_pools, merge_bn=options.merge_bn)


def _import_official(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tspike import-official",
        allow_abbrev=False,
        description="Fold a network trained with the code of the ternary spike's authors "
        "(github.com/yfguo91/Ternary-Spike) and write it as a folder that zoo.load reads. The backbone is found from "
        "the names and shapes of the weights.",
    )
    parser.add_argument("checkpoint", type=Path, help="file with a state_dict or a checkpoint, such as .pth")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder to write; default: the file's name, ending in .folded"
    )
    parser.add_argument("--timesteps", type=int, default=4, help="time steps T it was trained with; default: 4")
    options = parser.parse_args(words[1:])

    from ..models.official import import_official  # imports torch

    network = import_official(options.checkpoint, options.timesteps)
    _write_folded(network, options.output or options.checkpoint.with_suffix(".folded"), {})


def _report(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tspike report",
        allow_abbrev=False,
        description="Draw what a training run has logged: learning curves, amplitudes, membrane potentials, firing "
        "rates, energy and fold, as one HTML file that needs nothing else.",
    )
    parser.add_argument("run", type=Path, help="folder of the run, with metrics.csv or TensorBoard's event files")
    parser.add_argument("-o", "--output", type=Path, help="file to write; default: report.html in that folder")
    options = parser.parse_args(words[1:])

    from ..analysis.html_report import write_report

    print(write_report(options.run, options.output))


def _data(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tspike data", allow_abbrev=False, description="The data that networks are trained on."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check_parser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="read a recipe's data once and say what is in it",
        description="Read every sample of a recipe's data once: counts per class, shapes, range of values, time per "
        "sample, and files that cannot be read. Options such as --data.root=PATH change the recipe. Ends with status "
        "1 where a sample cannot be read.",
    )
    check_parser.add_argument("recipe", help="name of a recipe, or a YAML file with a section 'data'")
    options, changes = parser.parse_known_args(words[1:])

    from ..data.check import check_data, tables  # imports torch

    data = recipe_data(options.recipe, changes)
    found = check_data(data)
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
    from ..folding.absorb import fold
    from ..store.folder import write_folder

    folded, report = fold(network, integer_pools=integer_pools, merge_bn=merge_bn)
    write_folder(output, folded, report=report, **facts)
    print(f"{report.details()}\nwritten: {output}")


_DESCRIPTION = "Train ternary-spike networks, fold them, and use the zoo of trained ones."
_HINT = "tspike COMMAND --help lists its options. To begin with: tspike fit --config digits"
_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "fit": (_train, "train a network by a recipe, fold it and test it"),
    "validate": (_train, "measure a checkpoint on validation data"),
    "test": (_train, "measure a checkpoint on test data"),
    "predict": (_train, "classify data by a checkpoint, image files by --model NAME"),
    "fold": (_fold, "fold a checkpoint's spike amplitudes into its weights"),
    "import-official": (_import_official, "fold a network of the paper authors' code"),
    "report": (_report, "draw what a training run has logged, as one HTML file"),
    "data": (_data, "read a recipe's data once and say what is in it"),
    "zoo": (lambda words: run_zoo(words[1:]), "list, load, verify and publish trained networks"),
}
"""Command -> what runs it, given all words of the command line, and its line in the help."""
