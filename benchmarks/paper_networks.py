"""Memory and time of one training step of the paper's networks, next to the same network with ReLU.

    python -m benchmarks.paper_networks [cpu|cuda] [BATCH] [STEPS]

Batches of 32 images of 32x32 pixels unless told otherwise, T = 2 and 4, SGD with momentum, float32. Times are medians
over STEPS (3) steps after one that is not counted; network and ReLU network take turns. Memory is what autograd keeps
for the backward pass (each storage once, parameters left out) and, on a GPU, the peak of what was allocated. Results go
to benchmarks/results/paper_networks_DEVICE.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "tspike_resnet20": 10,
    "tspike_resnet19": 10,
    "tspike_resnet20_cifar": 10,
    "tspike_resnet18": 1000,
    "tspike_resnet34": 1000,
}


def main(device: str = "cpu", batch: int = 32, steps: int = 3) -> None:
    """Measure all networks, print a row for each as it is done, and write the results."""
    rows = []
    print("network                     T   M param  kept MiB  peak MiB  s per step  x ReLU network")
    for name, classes in NETWORKS.items():
        for timesteps in (2, 4):
            row = _measure(name, classes, timesteps, device, batch, steps)
            rows.append(row)
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
            print(
                f"{name:26s} {timesteps:2d} {row['parameters'] / 1e6:9.2f} {row['kept_mib']:9.0f} {peak:>9s} "
                f"{row['seconds']:11.3f} {row['seconds'] / row['relu_seconds']:15.1f}",
                flush=True,
            )
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    machine = {"torch": torch.__version__, "hardware": hardware, "threads": torch.get_num_threads()}
    settings = {"batch": batch, "image": [3, 32, 32], "steps": steps}
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": machine, "settings": settings, "rows": rows}
    (RESULTS / f"paper_networks_{device}.json").write_text(json.dumps(result, indent=2) + "\n")


def _measure(name: str, classes: int, timesteps: int, device: str, batch: int, steps: int) -> dict[str, Any]:
    x, y = torch.randn(batch, 3, 32, 32, device=device), torch.randint(classes, (batch,), device=device)
    torch.manual_seed(0)
    relu = timm.create_model(name, num_classes=classes).to(device)
    network = create_network(NetworkConfig(name, classes, 3, timesteps)).to(device)
    ours, theirs = (_training_step(model, x, y) for model in (network, relu))
    ours(), theirs()
    kept = _kept_for_backward(network, x, y)
    peak = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        ours()
        peak = torch.cuda.max_memory_allocated() / 2**20
    times = [(_seconds(ours, device), _seconds(theirs, device)) for _ in range(steps)]
    return {
        "network": name,
        "T": timesteps,
        "parameters": sum(p.numel() for p in network.parameters()),
        "kept_mib": kept / 2**20,
        "peak_mib": peak,
        "seconds": statistics.median(t for t, _ in times),
        "relu_seconds": statistics.median(t for _, t in times),
    }


def _training_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _seconds(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _kept_for_backward(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Bytes of the storages that autograd keeps between forward and backward."""
    sizes: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold on to the graph that holds on to it

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(model(x), y)
    return sum(sizes.values())


if __name__ == "__main__":
    device, batch, steps = [*sys.argv[1:], *["cpu", "32", "3"][len(sys.argv) - 1 :]]
    main(device, int(batch), int(steps))
