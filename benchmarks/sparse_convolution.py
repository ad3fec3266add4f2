"""From which firing rate on a convolution is faster that skips silence, and what it brings a whole network.

    python -m benchmarks.sparse_convolution [--output FOLDER]

1. Layers of ResNet-18 on 4 images, int8 weights: time of the sparse kernel relative to oneDNN's dense one, by firing
   rate, with spikes at random places (in a network silence comes in groups, which makes the sparse kernel faster).
2. ResNet-18 on one image of 224x224 at T = 4, with random weights whose thresholds are set so that its neurons fire at
   a given rate: time of the integer runtime with all layers dense, and with the kernel chosen for each layer, relative
   to timm's ResNet-18 in float32.

Results: sparse_convolution.json and sparse_convolution.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import lightning_tspike as lt
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.inference.integer_layers import IntegerConv
from lightning_tspike.kernels import sparse
from lightning_tspike.network import SpikingNetwork

from .inference_networks import calibrate
from .measuring import RESULTS, command, in_turn, listing, machine, ratio, table, write

LAYERS = {  # channels, output channels, size, kernel, stride
    "64 -> 64, 56x56, 3x3": (64, 64, 56, 3, 1),
    "64 -> 128, 56x56, 3x3, stride 2": (64, 128, 56, 3, 2),
    "128 -> 128, 28x28, 3x3": (128, 128, 28, 3, 1),
    "256 -> 256, 14x14, 3x3": (256, 256, 14, 3, 1),
    "256 -> 512, 14x14, 1x1, stride 2": (256, 512, 14, 1, 2),
    "512 -> 512, 7x7, 3x3": (512, 512, 7, 3, 1),
}
RATES = (0.05, 0.1, 0.15, 0.2, 0.3)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse_convolution")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=4, help="of a layer (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="of the network's image (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not sparse.is_available():
        parser.error("this machine has no AVX512_VNNI, or no C++ compiler")
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "command": command("sparse_convolution", arguments),
        "machine": machine("cpu"),
        "layers": [_layer(name, options) for name in LAYERS],
        "network": [_network(rate, options) for rate in (0.05, 0.1, 0.15, 0.2, 0.3, 0.6)],
    }
    markdown = (
        f"# Convolutions that skip silence\n\n`{results['command']}`\n\n{listing(results['machine'])}\n\n"
        "Time of the sparse kernel relative to the dense one, by firing rate:\n\n"
        f"{table(results['layers'])}\n"
        f"ResNet-18, one image of {options.size}x{options.size}, T = 4, time relative to timm's in float32:\n\n"
        f"{table(results['network'])}"
    )
    write(options.output, "sparse_convolution", results, markdown)
    print(markdown)
    return results


def _layer(name: str, options: argparse.Namespace) -> dict[str, Any]:
    channels, out_channels, size, kernel, stride = LAYERS[name]
    conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2)
    dense, skipping = (
        IntegerConv(conv.weight, conv, (kernel // 2, kernel // 2), 1, 1, (size, size)) for _ in range(2)
    )  # fmt: skip
    skipping.become_sparse()
    row: dict[str, Any] = {"layer": name}
    with torch.no_grad():
        for rate in RATES:
            x = _spikes(rate, options.images, channels, size)
            assert torch.equal(dense(x), skipping(x))
            times = in_turn(
                {"dense": lambda x=x: dense(x), "sparse": lambda x=x: skipping(x)},
                "cpu",
                rounds=options.rounds,
                calls=3,
            )
            row[f"at {rate:g}"] = min(times["sparse"]) / min(times["dense"])
    return row


def _spikes(rate: float, images: int, channels: int, size: int) -> Tensor:
    shape = images, channels, size, size
    signs = torch.randint(2, shape) * 2 - 1
    spikes = (torch.rand(shape) < rate) * signs
    return (spikes + 1).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _network(rate: float, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, options.size, options.size)
    network = lt.ternarize(timm.create_model("resnet18"), timesteps=4, input_size=tuple(x.shape[1:]))
    _set_rate(network, x, rate)
    dense, chosen = lt.inference.integer(network), lt.inference.integer(network, x)
    runtime: Any = chosen.runtime
    ann = timm.create_model("resnet18").eval().to(memory_format=torch.channels_last)
    image = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), firing_rates(network) as rates:
        network(x)
    with torch.no_grad():
        assert torch.equal(dense(x), chosen(x))
        functions = {"ann": lambda: ann(image), "dense": lambda: dense(x), "chosen": lambda: chosen(x)}
        times = in_turn(functions, "cpu", rounds=options.rounds)
    return {
        "firing rate": statistics.fmean(rate.total for rate in rates.values()),
        "active fours": statistics.fmean(runtime.active.values()),
        "layers that skip silence": len(runtime.sparse),
        "all dense": ratio(times["dense"], times["ann"]),
        "kernel by layer": ratio(times["chosen"], times["ann"]),
    }


def _set_rate(network: SpikingNetwork, x: Tensor, rate: float) -> None:
    """Norms as after some training, then thresholds, layer after layer, so that each fires at a rate."""
    calibrate(network, x.shape[-1])

    def choose(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        current = inputs[0].abs().flatten()
        layer.threshold.copy_(torch.quantile(current[:: max(1, len(current) // 10**6)], 1 - rate))

    with torch.no_grad():
        for neuron in network.neurons().values():
            handle = neuron.register_forward_pre_hook(choose)
            network(x)
            handle.remove()


if __name__ == "__main__":
    main()
