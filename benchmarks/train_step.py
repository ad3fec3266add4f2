"""A training step of a whole network: time and memory, side by side, in one run.

    python -m benchmarks.train_step [--device cpu] [--network resnet18] [--size 64] [--batch 8] [--timesteps 4]
                                    [--dtype float32] [--channels-last] [--rounds 7] [--output FOLDER]

Forward, cross-entropy, backward and one step of SGD of these, in turn:

* ``eager``: the network with neurons as published training code has them, one PyTorch operation after another;
* ``full``, ``packed``, ``lean``: the same weights with this package's neurons and ``memory=``;
* ``compiled``: with this package's neurons and torch.compile, which fuses batch norms and neurons;
* SpikingJelly's ResNet of the same size with its ternary neuron, and with its memory optimisation (level 1), where it
  is installed. On still images it runs its first layers at every time step; this package runs them once.

Kept for backward: bytes held after the forward pass that were not before. On a GPU the peak of a step is measured, too.
How far the first gradients of the same weights differ from ``eager``'s is written beside, as the norm of the difference
over the norm. Results: train_step_DEVICE_NETWORK.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tspike.kernels import can_compile
from lightning_tspike.memory.compiling import compile_for_training
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig

from . import rivals
from .measuring import RESULTS, command, in_turn, kept_bytes, listing, machine, ratio, table, write

CLASSES = 1000


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--network", default="resnet18", help="a timm model; for resnet18 and 34 SpikingJelly has one")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: autocast")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    y = torch.randint(CLASSES, (options.batch,), device=options.device)
    if options.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    networks = _networks(options, x)
    gradients = {name: _gradient(network, x, y, options) for name, network in networks.items() if "Jelly" not in name}
    steps = {name: _Step(network, x, y, options) for name, network in networks.items()}
    times = in_turn(steps, options.device, rounds=options.rounds)
    kept = {name: kept_bytes(step.forward, options.device) for name, step in steps.items()}
    rows = []
    for name, step in steps.items():
        row: dict[str, Any] = {
            "network": name,
            "ms": statistics.median(times[name]) * 1e3,
            "images per second": options.batch / statistics.median(times[name]),
            "time / eager": ratio(times[name], times["eager"]),
            "kept for backward, MiB": kept[name] / 2**20,
            "kept / eager": kept[name] / kept["eager"],
        }
        if options.device == "cuda":
            row["peak of a step, MiB"] = step.peak() / 2**20
        gradient = gradients.get(name)
        row["gradients differ by"] = None if gradient is None else _distance(gradient, gradients["eager"])
        rows.append(row)
        print(row, flush=True)
    results = {
        "command": command("train_step", arguments),
        "machine": machine(options.device),
        "missing libraries": rivals.missing(),
        "input": {
            "images": list(x.shape), "T": options.timesteps, "dtype": options.dtype,
            "channels_last": options.channels_last,
        },
        "rows": rows,
    }  # fmt: skip
    facts = listing({**results["input"], **results["machine"]})
    markdown = f"# A training step of {options.network}\n\n`{results['command']}`\n\n{facts}\n\n{table(rows)}"
    write(options.output, f"train_step_{options.device}_{options.network}", results, markdown)
    return results


def _networks(options: argparse.Namespace, x: Tensor) -> dict[str, nn.Module]:
    config = NetworkConfig(options.network, num_classes=CLASSES, timesteps=options.timesteps)
    base = create_network(config).to(options.device)
    if options.channels_last:
        base = base.to(memory_format=torch.channels_last)
    networks: dict[str, nn.Module] = {"eager": rivals.use_eager_neurons(copy.deepcopy(base))}
    for memory in ("full", "packed", "lean"):
        network = copy.deepcopy(base)
        network.memory = memory
        networks[memory] = network
    if can_compile(options.device) and not options.no_compile:
        networks["compiled"] = copy.deepcopy(base)
        compile_for_training(networks["compiled"].model, options.device)
    jelly: dict[str, Callable[[int], Any]] = {"resnet18": rivals.spiking_resnet18, "resnet34": rivals.spiking_resnet34}
    if "SpikingJelly" not in rivals.missing() and options.network in jelly:
        network = jelly[options.network](options.timesteps).to(options.device)
        networks["SpikingJelly"] = network
        networks["SpikingJelly, memopt"] = rivals.memopt(copy.deepcopy(network), x)
        if options.channels_last:
            networks["SpikingJelly"].to(memory_format=torch.channels_last)
            networks["SpikingJelly, memopt"].to(memory_format=torch.channels_last)
    return networks


class _Step:
    """One training step of one network; calling it is what is timed."""

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> None:
        self.network, self.x, self.y, self.device = network, x, y, options.device
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        is_half = options.dtype == "bfloat16"
        self.precision = (lambda: torch.autocast(options.device, torch.bfloat16)) if is_half else nullcontext

    def forward(self) -> Tensor:
        with self.precision():
            return F.cross_entropy(self.network(self.x), self.y)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()
        self.optimizer.step()

    def peak(self) -> int:
        """Bytes at the peak of a step, above what is held before it."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def _gradient(network: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Tensor:
    step = _Step(network, x, y, options)
    step.forward().backward()
    gradient = torch.cat([p.grad.flatten().float() for p in network.parameters() if p.grad is not None])
    network.zero_grad(set_to_none=True)
    return gradient


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


if __name__ == "__main__":
    main()
