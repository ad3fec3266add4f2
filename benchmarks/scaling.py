"""ImageNet on one GPU and on many, on paper: operations, memory, traffic, data and hours, by formulas that are checked.

    python -m benchmarks.scaling [--network resnet34] [--timesteps 4] [--epochs 320] [--dollars 3] [--output FOLDER]

With N GPUs, batch B on each, P parameters, M multiply-accumulates (MACs) of the ANN for an image, of them F in the
layers before the first neuron, which run once for all time steps:

    operations of a training step      2 B (3 (F + T (M - F)) - F): forward, and twice as much backward, less the
                                       gradient of the image, which nobody needs
    kept for its backward pass         B times what one image keeps
    traffic of gradients, each GPU     2 (N - 1) / N * 4 P bytes sent, and as many received (ring all-reduce)
    data                               N times the images per second of a GPU, over those of a loader process
    hours                              epochs * images / (N * images per second), where traffic hides behind the
                                       backward pass (DDP overlaps them)

Each formula is checked here at a small size: operations by torch's FLOP counter, memory by what is allocated, traffic
by the bytes that two and three processes send each other, hours by a run of ``tspike fit`` on the digits, validation
and callbacks included, beside what ``tspike doctor`` foretells. The images per second of a GPU are those of
results/train_step_cuda_resnet34.json, of a loader process those of results/data_loading.json. Results: scaling.json and
.md, and from there docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.memory import MEMORY_MODES, MemoryMode
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork
from lightning_tspike.store.checkpoint import read_checkpoint

from .measuring import RESULTS, command, kept_bytes, machine, table, write

IMAGES, VALIDATION = 1_281_167, 50_000  # of ImageNet-1k
GPUS = (1, 8, 64)
SMALL = 64  # pixels, where formulas are checked


def operations(batch: int, macs: float, prefix: float, timesteps: int) -> float:
    """Floating-point operations of a training step."""
    return 2 * batch * (3 * (prefix + timesteps * (macs - prefix)) - prefix)


def sent_bytes(gpus: int, parameters: int) -> float:
    """What each process sends for the gradients of a step in float32; it receives as much."""
    return 2 * (gpus - 1) / gpus * 4 * parameters


def hours(epochs: int, gpus: int, images_per_second: float, images: int = IMAGES) -> float:
    """Of a training; validation, a forward pass for one image in 25, is left out."""
    return epochs * images / (gpus * images_per_second) / 3600


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the formulas and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--network", default="resnet34")
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=320)
    parser.add_argument("--batch", type=int, default=40, help="on each GPU (default: 40, as published)")
    parser.add_argument("--dollars", type=float, default=3.0, help="of a GPU for an hour: an assumption (default: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--all-reduce", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.all_reduce:
        _all_reduce(options.all_reduce)
        return
    torch.manual_seed(0)
    network = create_network(NetworkConfig(options.network, num_classes=1000, timesteps=options.timesteps))
    parameters = sum(p.numel() for p in network.parameters())
    macs, prefix = _macs(network, 224)
    checks = [_check_operations(network), _check_memory(network), *(_check_traffic(n) for n in (2, 3)), _check_hours()]
    print(table(checks), flush=True)
    facts = {
        "parameters, M": parameters / 1e6,
        "MACs of the ANN for an image of 224x224, G": macs / 1e9,
        "operations of a training step for an image, GFLOP": operations(1, macs, prefix, options.timesteps) / 1e9,
        **{f"kept for an image, memory={mode}, MiB": kept / 2**20 for mode, kept in _kept_by_mode(network).items()},
        "sent by each of 8 GPUs a step, MB": sent_bytes(8, parameters) / 1e6,
    }
    speeds = _images_per_second()
    per_worker = _loader_images_per_second()
    rows = [
        {
            "memory": mode,
            "GPUs": gpus,
            "images a second": round(gpus * speed),
            "loader processes for each GPU": math.ceil(speed / per_worker),
            "traffic, GB/s for each GPU": sent_bytes(gpus, parameters) * speed / options.batch / 1e9,
            "hours": round(hours(options.epochs, gpus, speed), 1),
            "dollars": round(hours(options.epochs, gpus, speed) * gpus * options.dollars),
        }
        for mode, speed in speeds.items()
        for gpus in GPUS
    ]
    text = (
        f"# ImageNet on paper: {options.network}, T = {options.timesteps}, {options.epochs} epochs\n\n"
        f"`{command('scaling', arguments)}`\n\n## Formulas, checked\n\n{table(checks)}\n"
        f"## An image and a step\n\n{table([{'what': name, 'value': value} for name, value in facts.items()])}\n"
        f"## GPUs\n\nAn NVIDIA H200, bfloat16, channels last, batch {options.batch}; {per_worker:.0f} images a second "
        f"for each loader process; {options.dollars:g} dollars for a GPU's hour.\n\n{table(rows)}"
    )
    results = {"command": command("scaling", arguments), "machine": machine("cpu"), "checks": checks, "facts": facts}
    write(options.output, "scaling", {**results, "rows": rows}, text)


def _macs(network: SpikingNetwork, size: int) -> tuple[float, float]:
    """Multiply-accumulates of the ANN for an image, and of the layers before the first neuron."""
    report = measure_energy(network.eval(), torch.randn(1, 3, size, size))
    return report.ann_macs, sum(layer.macs for layer in report.layers)


def _check_operations(network: SpikingNetwork) -> dict[str, Any]:
    x = torch.randn(2, 3, SMALL, SMALL)
    network.train()
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    network.zero_grad()
    expected = operations(2, *_macs(network, SMALL), network.timesteps)
    return _check(f"operations, 2 images of {SMALL}x{SMALL}, FLOP", expected, counter.get_total_flops())


def _check_memory(network: SpikingNetwork) -> dict[str, Any]:
    one, eight = (_kept(network, batch, SMALL) for batch in (1, 8))
    return _check(f"memory, 8 images of {SMALL}x{SMALL}, bytes", 8 * one, eight)


def _kept(network: SpikingNetwork, batch: int, size: int, mode: MemoryMode = "full") -> int:
    network.memory = mode
    network.train()
    x = torch.randn(batch, 3, size, size)
    network(x).sum().backward()  # what is made once is there
    network.zero_grad()
    return kept_bytes(lambda: network(x).sum(), "cpu")


def _kept_by_mode(network: SpikingNetwork) -> dict[str, int]:
    return {mode: _kept(network, 1, 224, mode) for mode in MEMORY_MODES}


def _check_traffic(processes: int) -> dict[str, Any]:
    parameters = 5_000_000
    words = ["--standalone", f"--nproc-per-node={processes}", "-m", "benchmarks.scaling", f"--all-reduce={parameters}"]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    sent = json.loads(result.stdout.splitlines()[-1])
    return _check(f"traffic, {processes} processes, bytes sent by each", sent_bytes(processes, parameters), sent)


def _all_reduce(parameters: int) -> None:
    """In each of several processes: all-reduce gradients; the first says what each has sent over the loopback."""
    torch.distributed.init_process_group("gloo")
    gradients = torch.ones(parameters)
    torch.distributed.all_reduce(gradients)
    torch.distributed.barrier()
    before, rounds = _loopback_bytes(), 4
    torch.distributed.barrier()
    for _ in range(rounds):
        torch.distributed.all_reduce(gradients)
    torch.distributed.barrier()
    sent = (_loopback_bytes() - before) / rounds / torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        print(json.dumps(sent), flush=True)
    torch.distributed.destroy_process_group()


def _loopback_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def _check_hours() -> dict[str, Any]:
    epochs = 20
    with tempfile.TemporaryDirectory() as scratch:

        def tspike(*words: str) -> None:
            code = "from lightning_tspike.cli.main import main; main()"
            subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, cwd=scratch)

        tspike("doctor", "digits", "--json", "doctor.json")
        tspike("fit", "--config", "digits", f"--trainer.max_epochs={epochs}", "--trainer.enable_progress_bar=false")
        foretold = json.loads(Path(scratch, "doctor.json").read_text())
        last = Path(scratch, "runs/digits/version_0/checkpoints/last.ckpt")
        seconds = read_checkpoint(last).training_seconds
    assert seconds is not None
    images = foretold["batches"] * foretold["batch_size"]
    expected = 3600 * hours(epochs, 1, foretold["images_per_second"], images)
    return _check(f"time, {epochs} epochs of the digits, seconds", expected, seconds)


def _check(what: str, formula: float, measured: float) -> dict[str, Any]:
    return {
        "what": what,
        "formula": float(formula),
        "measured": float(measured),
        "measured / formula": measured / formula,
    }


def _images_per_second() -> dict[str, float]:
    """Of a GPU, by memory mode, as measured."""
    measured = json.loads((RESULTS / "train_step_cuda_resnet34.json").read_text())
    return {row["network"]: row["images per second"] for row in measured["rows"] if row["network"] in MEMORY_MODES}


def _loader_images_per_second() -> float:
    """Of one loader process that decodes photos, as measured."""
    measured = json.loads((RESULTS / "data_loading.json").read_text())
    (row,) = [row for row in measured["rows"] if row["images"] == "photos" and row["workers"] == 0]
    return row["images per second, bare"] / row["median ratio"]


if __name__ == "__main__":
    main()
