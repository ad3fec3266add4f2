"""``tspike classify|fold|import-official|import-spikingjelly``: what is done with a network that has been trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._tables import new_table, table_text
from .._waiting import waiting
from .commands import Commands, takes_network

if TYPE_CHECKING:
    from ..network.spiking_network import SpikingNetwork

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    classify = commands.add(
        "classify",
        _classify,
        "classify image files with a network of the zoo or your own",
        "Classify image files with a network, prepared as the images that it was trained on.",
    )
    takes_network(classify)
    classify.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files")
    classify.add_argument("--top", type=int, default=1, help="classes to print for each image; default: 1")
    classify.add_argument(
        "--runtime", choices=["float32", "integer"], default="float32",
        help="integer: spikes as bytes and int8 weights, on the CPU; default: float32",
    )  # fmt: skip

    fold = commands.add(
        "fold",
        _fold,
        "fold a checkpoint's spike amplitudes into its weights",
        "Fold a checkpoint: its spike amplitudes vanish into weights and thresholds. The fold is verified "
        "in float64, shown as tables, and written as a folder (network and fold_report.json) that zoo.load reads.",
    )
    fold.add_argument("checkpoint", type=Path, help="checkpoint of a training run, or a folder with a network")
    fold.add_argument("-o", "--output", type=Path, help="folder to write; default: the checkpoint's, .folded")
    fold.add_argument("--integer-pools", action="store_true", help="average pools of spikes sum instead")
    fold.add_argument("--merge-bn", action="store_true", help="batch norms become part of the layers before them")

    official = commands.add(
        "import-official",
        _import_official,
        "fold a network of the paper authors' code",
        "Fold a network trained with the code of the ternary spike's authors (github.com/yfguo91/Ternary-Spike) and "
        "write it as a folder that zoo.load reads. The backbone is found from the names and shapes of the weights.",
    )
    official.add_argument("checkpoint", type=Path, help="file with a state_dict or a checkpoint, such as .pth")
    official.add_argument(
        "-o", "--output", type=Path, help="folder to write; default: the file's name, ending in .folded"
    )
    official.add_argument("--timesteps", type=int, default=4, help="time steps T it was trained with; default: 4")

    jelly = commands.add(
        "import-spikingjelly",
        _import_spikingjelly,
        "fold a ResNet or SEW-ResNet of SpikingJelly",
        "Write a ResNet or SEW-ResNet trained with SpikingJelly as a folder that zoo.load reads. Weights do not tell "
        "what the neurons are: name the class and the arguments that it was made with.",
    )
    jelly.add_argument("checkpoint", type=Path, help="file with a state_dict or a checkpoint, such as .pth")
    jelly.add_argument("--network", required=True, help="the function that made it: spiking_resnet18, sew_resnet34")
    jelly.add_argument("--cnf", default="ADD", help="of a SEW-ResNet: ADD, AND or IAND; default: ADD")
    jelly.add_argument("--neuron", default="IFNode", help="its neurons' class, e.g. LIFNode; default: IFNode")
    jelly.add_argument("--tau", type=float, default=2.0, help="of LIFNode; default: 2")
    jelly.add_argument("--no-decay-input", action="store_true", help="where decay_input is false")
    jelly.add_argument("--v-threshold", type=float, default=1.0, help="default: 1")
    jelly.add_argument("--v-reset", type=_number_or_none, default=0.0, help="default: 0; none for a soft reset")
    jelly.add_argument("--timesteps", type=int, default=4, help="time steps T it was trained with; default: 4")
    jelly.add_argument("-o", "--output", type=Path, help="folder to write; default: the file's name, ending in .folded")


def _classify(options: argparse.Namespace) -> None:
    if options.top < 1:
        options.command.parser.error(f"--top must be at least 1, got {options.top}")

    import torch

    from ..data.image_files import read_image
    from ..inference.integer_network import integer
    from ..store.loading import load_with_config, transform_of

    network, manifest = load_with_config(options.network)
    spec = manifest.preprocessing
    if spec is not None and spec.frames is not None:
        raise ValueError(f"{options.network} classifies recordings of event cameras, not images")
    if options.runtime == "integer":
        network = integer(network)
    transform = transform_of(spec, options.network)
    names = manifest.label_names or [str(label) for label in range(network.num_classes)]
    table = new_table("image", "class", "probability")
    for file in options.images:
        x = read_image(file, transform)
        with torch.no_grad():
            probabilities = network(x[None]).softmax(-1)[0]
        for probability, label in zip(*probabilities.topk(min(options.top, len(names))), strict=True):
            table.add_row(str(file), names[int(label)], f"{probability:.4f}")
    print(table_text(table), end="")


def _fold(options: argparse.Namespace) -> None:
    output = options.output or options.checkpoint.with_suffix(".folded")
    if output.exists() and output.resolve() == options.checkpoint.resolve():
        options.command.parser.error(f"{output} is the folder to be read; name another one with --output")

    from ..store.source import open_path  # imports torch

    network, preprocessing, label_names, _ = open_path(options.checkpoint).read_saved()
    facts = {"preprocessing": preprocessing, "label_names": label_names}
    _write_folded(network, output, facts, integer_pools=options.integer_pools, merge_bn=options.merge_bn)


def _import_official(options: argparse.Namespace) -> None:
    from ..models.official import import_official  # imports torch

    network = import_official(options.checkpoint, options.timesteps)
    _write_folded(network, options.output or options.checkpoint.with_suffix(".folded"), {})


def _import_spikingjelly(options: argparse.Namespace) -> None:
    from ..models.spikingjelly import JellyNeuron, import_spikingjelly  # imports torch

    neuron = JellyNeuron(
        options.neuron,
        tau=options.tau,
        decay_input=not options.no_decay_input,
        v_threshold=options.v_threshold,
        v_reset=options.v_reset,
    )
    network = import_spikingjelly(
        options.checkpoint, options.network, neuron, cnf=options.cnf, timesteps=options.timesteps
    )
    _write_folded(network, options.output or options.checkpoint.with_suffix(".folded"), {})


def _number_or_none(word: str) -> float | None:
    return None if word.lower() == "none" else float(word)


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

    with waiting("folding and verifying in float64"):
        folded, report = fold(network, integer_pools=integer_pools, merge_bn=merge_bn)
    write_folder(output, folded, report=report, **facts)
    print(f"{report.details()}\nwritten: {output}")
