"""Table 5 of the ternary spike (Guo et al., AAAI 2024): its energies from its counts, and its counts beside ours.

    python -m benchmarks.paper_energy CIFAR10 [--images 64] [--output FOLDER]

CIFAR10 is the folder with CIFAR-10's npz files. The paper gives FLOPs, synaptic operations (SOPs), sign operations and
energy of its ResNet-20 for one image, and neither T nor how they were counted. Ours come from forward passes of
``tspike_resnet20`` over test images, folded, with fresh weights and norms measured on other test images; so the SOPs
are those of a network at the start of training. Beside them is their share of the MACs of T steps, of the layers that
read spikes, and the share that would give the paper's SOPs. For the paper's signs there is every set of whole stages
(neurons of one pass, or of T steps; one comparison for binary neurons, two for ternary ones) that gives both of its
numbers. Results: paper_energy.json and .md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lightning_tspike import SpikingNetwork, fold
from lightning_tspike._observe import observing
from lightning_tspike.analysis.accounting import ACCOUNTINGS
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.cli.data import recipe_data
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig

from .measuring import RESULTS, machine, table, write

PAPER = ACCOUNTINGS["paper"]


@dataclass(frozen=True)
class Printed:
    """A row of Table 5; counts in millions, energy in microjoules."""

    neuron: str
    flops: float
    sops: float
    signs: float
    microjoules: float

    @property
    def recomputed(self) -> float:
        """Its energy from its counts by the accounting ``"paper"``, in microjoules."""
        return PAPER.picojoules(self.flops / 2, self.sops, self.signs)  # two FLOPs are one multiply-accumulate


TABLE_5 = (
    Printed("binary_lif", 3.54, 71.20, 0.11, 50.14),
    Printed("ternary_lif", 3.54, 79.21, 0.23, 51.20),
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Count all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_energy")
    parser.add_argument("cifar10", metavar="CIFAR10", type=Path, help="folder with CIFAR-10's npz files")
    parser.add_argument("--images", type=int, default=64, help="for the counts, and as many for the norms")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    images = _images(options.cifar10, 2 * options.images)
    rows = []
    for timesteps in (2, 4):
        for printed in TABLE_5:
            rows.append(_measure(printed, timesteps, *images.chunk(2)))
            print(rows[-1], flush=True)
    energies = [
        {"neuron": p.neuron, "uJ by the paper": f"{p.microjoules:.2f}", "uJ from its counts": f"{p.recomputed:.2f}"}
        for p in TABLE_5
    ]
    matches = sign_counts(_neurons_by_part(images[:1]))
    results = {
        "command": f"python -m benchmarks.paper_energy CIFAR10 --images {options.images}",
        "machine": machine("cpu"),
        "energies": energies,
        "rows": rows,
        "counts of neurons that give the paper's signs": matches,
    }
    markdown = (
        f"# Table 5 of the paper\n\n`{results['command']}`\n\n{table(energies)}\n{table([_shown(r) for r in rows])}\n"
        f"Counts of neurons that give the paper's signs:\n\n{table(matches)}"
    )
    write(options.output, "paper_energy", results, markdown)
    return results


def _images(folder: Path, count: int) -> Tensor:
    changes = ["--data.dataset=npz", f"--data.root={folder}", f"--data.batch_size={count}", "--data.num_workers=0"]
    data = recipe_data("resnet20_cifar10", changes)
    data.setup("test")
    images: Tensor = next(iter(data.test_dataloader()))[0]
    return images


def _network(neuron: str, timesteps: int) -> SpikingNetwork:
    torch.manual_seed(0)
    return create_network(NetworkConfig("tspike_resnet20", 10, timesteps=timesteps, neuron=neuron))


def _measure(printed: Printed, timesteps: int, for_norms: Tensor, images: Tensor) -> dict[str, Any]:
    network = _network(printed.neuron, timesteps)
    update_bn([for_norms], network)
    for module in network.modules():
        if isinstance(module, nn.AvgPool2d):
            module.ceil_mode = False  # at 32x32 all windows are whole; knowing that, the fold lets the pools sum
    report = measure_energy(fold(network.eval(), integer_pools=True)[0], images, PAPER)
    macs = timesteps * sum(layer.ann_macs for layer in report.layers if layer.synops)
    return {
        "neuron": printed.neuron,
        "T": timesteps,
        "FLOPs": 2 * report.macs,
        "FLOPs of the first layer": 2 * report.layers[0].macs,
        "FLOPs by the paper": printed.flops * 1e6,
        "SOPs": report.synops,
        "SOPs by the paper": printed.sops * 1e6,
        "SOPs / MACs": report.synops / macs,
        "SOPs / MACs by the paper": printed.sops * 1e6 / macs,
        "signs": report.signs,
        "signs by the paper": printed.signs * 1e6,
        "uJ": report.total_picojoules / 1e6,
        "uJ by the paper": printed.microjoules,
    }


def _neurons_by_part(image: Tensor) -> dict[str, int]:
    """How many neurons the stem and each stage have."""
    parts: dict[str, int] = {}
    network = _network("ternary_lif", 1)

    def count(name: str, _neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        part = ".".join(name.split(".")[:2]) if name.startswith("stages") else "stem"
        parts[part] = parts.get(part, 0) + spikes.numel()

    with observing(network.neurons(), count), torch.no_grad():
        network(image)
    return parts


def sign_counts(neurons: dict[str, int]) -> list[dict[str, Any]]:
    """Every set of parts, at one pass or T steps, that gives the paper's signs for binary and for ternary neurons.

    Args:
        neurons: How many there are in each part of the network.
    """
    wanted = [f"{printed.signs:.2f}" for printed in TABLE_5]
    found = []
    for size, steps in itertools.product(range(1, len(neurons) + 1), (1, 2, 4)):
        for parts in itertools.combinations(neurons, size):
            count = steps * sum(neurons[part] for part in parts)
            if [f"{count * comparisons / 1e6:.2f}" for comparisons in (1, 2)] == wanted:
                found.append({"neurons of": ", ".join(parts), "steps": steps, "binary": count, "ternary": 2 * count})
    return found


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Ours and the paper's in one cell, counts in millions."""

    def cell(name: str, digits: int, unit: float = 1.0) -> str:
        return f"{row[name] / unit:.{digits}f} ({row[f'{name} by the paper'] / unit:.{digits}f})"

    counts = {f"{name}, M (the paper's)": cell(name, 2, 1e6) for name in ("FLOPs", "SOPs", "signs")}
    others = {f"{name} (the paper's)": cell(name, digits) for name, digits in (("SOPs / MACs", 3), ("uJ", 2))}
    return {"neuron": row["neuron"], "T": row["T"], **counts, **others}


if __name__ == "__main__":
    main()
