"""Streaming: memory over many frames, and what a frame costs.

    python -m benchmarks.streaming [--frames 10000] [--entry tspike-nmnist] [--output FOLDER]

One stream of an entry of the zoo runs on random frames; along the way the process's resident memory (Linux), the
number of tensors that are alive and their bytes are recorded. Then, in turns, the time of a frame: of a stream, of one
with a compiled step, and of the network on T frames at once, divided by T. Last, for every trained entry, how many
spikes differ between streams and all frames at once, in float32. Results: streaming.json and .md.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import lightning_tspike as lt
from lightning_tspike._observe import observing

from .measuring import RESULTS, command, in_turn, listing, machine, ratio, table, write


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--entry", default="tspike-nmnist")
    parser.add_argument("--rounds", type=int, default=100, help="rounds in which frames are timed")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled step")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = lt.zoo.load(options.entry)
    shape = lt.inference.step(network).frame_shape
    memory = _memory(network, shape, options.frames)
    times = _times(network, shape, options.rounds, compile=not options.no_compile)
    spikes = [_differences(entry, streams) for entry in lt.zoo.list(status="trained") for streams in (1, 8)]
    results = {
        "command": command("streaming", arguments),
        "machine": machine("cpu"),
        "entry": options.entry,
        "frame": list(shape),
        "T": network.timesteps,
        "memory": memory,
        "a frame": times,
        "spikes": spikes,
    }
    markdown = (
        f"# Streaming {options.entry}\n\n`{results['command']}`, frames {list(shape)}\n\n"
        f"{listing(results['machine'])}\n\n## Memory\n\n{table(memory)}\n## Time of a frame\n\n{table(times)}\n"
        f"## Beside all frames at once, in float32\n\n{table(spikes)}"
    )
    write(options.output, "streaming", results, markdown)
    print(markdown)
    return results


def _memory(network: lt.SpikingNetwork, shape: tuple[int, ...], frames: int) -> list[dict[str, Any]]:
    """What is held after some of the frames, the last included."""
    stream = lt.inference.stream(network)
    looks = {max(frames * i // 10, min(frames, 100)) for i in range(11)}
    rows = []
    for i in track(range(1, frames + 1), "streaming"):
        stream(torch.rand(1, *shape))
        if i in looks:
            tensors, held = _alive()
            rows.append({"frames": i, "resident, MiB": _resident(), "tensors": tensors, "their bytes": held})
    return rows


def _alive() -> tuple[int, int]:
    """How many tensors there are, and their bytes; those that torch.compile imagines have none."""
    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return len(alive), sum(tensor.numel() * tensor.element_size() for tensor in alive)


def _resident() -> float | None:
    """Memory of this process that is in RAM, in MiB; None where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if status.exists() else None


def _times(network: lt.SpikingNetwork, shape: tuple[int, ...], rounds: int, *, compile: bool) -> list[dict[str, Any]]:
    """Milliseconds of one frame in each way."""
    frames = torch.rand(1, network.timesteps, *shape)
    ways: dict[str, Callable[[], Any]] = {"T frames at once": lambda: network(frames)}
    for name, compiled in (("stream", False), ("stream, compiled", True)):
        if compile or not compiled:
            stream = lt.inference.stream(network, compile=compiled)
            ways[name] = lambda stream=stream: [stream(frame) for frame in frames.unbind(1)]
    with torch.no_grad():
        times = in_turn(ways, "cpu", rounds=rounds, uncounted=5)
    base = times["T frames at once"]
    return [
        {"way": way, "ms": 1e3 * statistics.median(values) / network.timesteps, "ratio": ratio(values, base)}
        for way, values in times.items()
    ]


@torch.no_grad()
def _differences(entry: str, streams: int, timesteps: int = 8) -> dict[str, Any]:
    """Spikes and logits of streams of random frames beside those of all frames at once."""
    network = lt.zoo.load(entry)
    step = lt.inference.step(network)
    frames = torch.randn(streams, timesteps, *step.frame_shape)
    at_once: dict[str, Tensor] = {}
    stepwise: dict[str, list[Tensor]] = {}
    with observing(network.neurons(), lambda name, _neuron, _x, spikes: at_once.update({name: spikes})):
        expected = network(frames, per_step=True)
    layers = {name: step.layers.get_submodule(name) for name in at_once}
    with observing(layers, lambda name, _layer, _memory, out: stepwise.setdefault(name, []).append(out[0])):
        state, logits = step.initial_state(streams), []
        for frame in frames.unbind(1):
            now, state = step(frame, state)
            logits.append(now)
    return {
        "entry": entry,
        "streams": streams,
        "frames": timesteps,
        "spikes": sum(spikes.numel() for spikes in at_once.values()),
        "that differ": sum(int((torch.cat(stepwise[name]) != spikes).sum()) for name, spikes in at_once.items()),
        "largest logit": expected.abs().max().item(),
        "largest difference of logits": (torch.stack(logits) - expected).abs().max().item(),
    }


if __name__ == "__main__":
    main()
