"""What the fold changes in time and size: networks as trained, folded, and folded with integer arithmetic.

    python -m benchmarks.fold_speed [--rounds 30] [--output FOLDER]

Entries of the package that have their unfolded weights, on noise, and a ResNet-18 as ImageNet has it, untrained, with
statistics of norms that let it fire as a trained one. One image a call; the three run one after the other in every
round, and ratios are medians over the rounds. Sizes are those of the weights' files. Results: fold_speed.json and .md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightning_tspike import SpikingNetwork, fold, zoo
from lightning_tspike.inference import integer
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.store.folder import write_folder

from .inference_networks import calibrate
from .measuring import RESULTS, command, in_turn, listing, machine, ratio, table, write

ENTRIES = ("tspike-digits", "tspike-fashion-mnist", "tspike-cifar10", "tspike-nmnist")
UNFOLDED, FOLDED, INTEGER = "unfolded", "folded", "folded, integers"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fold_speed")
    parser.add_argument("--rounds", type=int, default=30, help="(default: 30)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    networks = [
        {"network": name, "T": network.timesteps, **measure(network, options.rounds)} for name, network in _networks()
    ]
    results = {"command": command("fold_speed", arguments), "machine": machine("cpu"), "networks": networks}
    text = ["# What the fold changes", "", listing(results["machine"]), "", fold_table(networks)]
    write(options.output, "fold_speed", results, "\n".join(text))
    print(text[-1])


def fold_table(networks: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    return table(
        [
            {
                "network": row["network"],
                "T": row["T"],
                "unfolded, ms": f"{1000 * row['seconds'][UNFOLDED]:.2f}",
                **{f"{kind} / unfolded": f"{row['ratios'][kind]:.2f}" for kind in (FOLDED, INTEGER)},
                "file unfolded, MB": f"{row['bytes'][UNFOLDED] / 1e6:.2f}",
                "folded, MB": f"{row['bytes'][FOLDED] / 1e6:.2f}",
                "int8, MB": f"{row['bytes'][INTEGER] / 1e6:.2f}",
            }
            for row in networks
        ]
    )


def _networks() -> Iterator[tuple[str, SpikingNetwork]]:
    for name in ENTRIES:
        yield name, zoo.load(name, folded=False)
    torch.manual_seed(0)
    network = create_network(NetworkConfig("resnet18", 1000, timesteps=4))
    calibrate(network, 224)
    yield "resnet18, untrained", network


@torch.inference_mode()
def measure(network: SpikingNetwork, rounds: int) -> dict[str, Any]:
    """Seconds of a call, ratios to the unfolded network's, bytes of the weights, by kind."""
    folded, report = fold(network)
    channels = network.input_size[0]
    frames = (network.timesteps,) if channels == 2 else ()  # of the two polarities of events
    images = torch.rand(1, *frames, *network.input_size)
    runs = {UNFOLDED: network, FOLDED: folded, INTEGER: integer(folded, images)}
    times = in_turn({kind: partial(run, images) for kind, run in runs.items()}, "cpu", rounds=rounds)
    with tempfile.TemporaryDirectory() as scratch:
        before = write_folder(Path(scratch, "unfolded"), network)
        after = write_folder(Path(scratch, "folded"), folded, report=report, precisions=("float32", "int8"))
        files = {
            UNFOLDED: before / "model.safetensors",
            FOLDED: after / "model.safetensors",
            INTEGER: after / "model.int8.safetensors",
        }
        sizes = {kind: file.stat().st_size for kind, file in files.items()}
    return {
        "seconds": {kind: statistics.median(seconds) for kind, seconds in times.items()},
        "ratios": {kind: ratio(times[kind], times[UNFOLDED]) for kind in (FOLDED, INTEGER)},
        "bytes": sizes,
    }


if __name__ == "__main__":
    main()
