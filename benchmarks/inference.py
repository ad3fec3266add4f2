"""Inference of a whole network: time and memory of every runtime beside the ANN's, side by side in one run.

    python -m benchmarks.inference [--batches 1,8] [--timesteps 1,2,4] [--rounds 30] [--size 224] [--threads 2]
                                   [--network resnet18] [--no-compile] [--parts speed,memory,engines] [--output FOLDER]
    python -m benchmarks.inference --docs     # write the section "Inference" of docs/speed.md from the results

* ``speed``: a folded ternary network in each of torch's runtimes (compiled at the largest T alone) and on integers;
  timm's ANN of the same architecture in float32 (eager, channels last, compiled: the fastest is what ratios are to) and
  in ONNX Runtime (float32 and int8); and SpikingJelly's ternary ResNet where it is installed. All take turns, round by
  round; ratios are medians over the rounds. A round of a large batch takes long, so there are fewer of them.
* ``memory``: what is held and the peak of a forward pass, each runtime in a process of its own
  (:mod:`benchmarks.inference_memory`), at the largest T.
* ``engines``: the convolutions of spikes one by one, on the engines that there are
  (:mod:`benchmarks.inference_engines`), at the largest T and the first batch.

Results: inference.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_tspike.analysis.runtimes import FLOAT32, RUNTIMES, ann_of, prepare
from lightning_tspike.analysis.speed import count_spikes
from lightning_tspike.inference.integer_network import IntegerNetwork, integer
from lightning_tspike.network import SpikingNetwork

from . import rivals
from .inference_engines import layers_of, measure_engines
from .inference_memory import measure_memory, numbers
from .inference_networks import calibrate, folded_network, onnx_ann
from .inference_report import report, section, write_docs
from .measuring import RESULTS, command, in_turn, machine, ratio, write

PARTS = ("speed", "memory", "engines")
TERNARY, ANN, JELLY = "ternary", "ANN", "SpikingJelly"
IN_MEMORY = ("eager", "channels last", "integer", "ANN eager", "ANN channels last")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference")
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--timesteps", type=numbers, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", default="resnet18", help="a timm model; of resnet18 and 34 SpikingJelly has one")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="only write docs/speed.md from the results")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts has {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.docs:
        results: dict[str, Any] = json.loads((options.output / "inference.json").read_text())
        write_docs(results)
        return results
    torch.set_num_threads(options.threads)
    network = folded_network(options.network, max(options.timesteps), options.size)
    rates = _rates(network, options.size)
    results = {
        "command": command("inference", arguments),
        "machine": {**machine("cpu"), "missing": rivals.missing()},
        "network": options.network,
        "image": [3, options.size, options.size],
        "timesteps": options.timesteps,
        "firing rates": rates,
        "weights": _weights(network),
    }
    if "speed" in options.parts:
        results["speed"] = [row for batch in options.batches for row in _speed(network, batch, options)]
    if "memory" in options.parts:
        results["memory"] = _memory(network, options)
    if "engines" in options.parts:
        layers = layers_of(ann_of(network), torch.randn(1, *results["image"]))
        batch = options.batches[0] * max(options.timesteps)
        results["engines"] = measure_engines(
            layers, batch, rates["mean"], rounds=options.rounds, threads=options.threads
        )
    write(options.output, "inference", results, report(results))
    print(section(results))
    return results


def _rates(network: SpikingNetwork, size: int) -> dict[str, float]:
    """Firing rate of all neurons together and of each layer, for noise."""
    layers = count_spikes(network, torch.randn(4, 3, size, size))
    spikes = sum(layer.spikes for layer in layers.values())
    mean = spikes / (network.timesteps * sum(layer.neurons for layer in layers.values()))
    return {"mean": mean, **{name: layer.firing_rate.total for name, layer in layers.items()}}


def _weights(network: SpikingNetwork) -> dict[str, Any]:
    """Bytes of the weights, in float32 and on integers, and what stays in float32."""
    made = integer(network)
    if not isinstance(made, IntegerNetwork):
        return {"float32": sum(4 * p.numel() for p in network.parameters()), "integer": None, "in float32": None}
    told = made.runtime
    return {"float32": told.float_weight_bytes, "integer": told.weight_bytes, "in float32": told.kept}


@torch.no_grad()
def _speed(network: SpikingNetwork, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for one batch, all of them measured in turn."""
    images = torch.randn(batch, 3, options.size, options.size)
    floats = {name: make for name, make in FLOAT32.items() if name != "compiled" or not options.no_compile}
    runs: dict[tuple[str, str, int | None], Callable[[], Any]] = {}
    for timesteps in options.timesteps:
        shown = copy.deepcopy(network)
        shown.timesteps = timesteps
        chosen = {**floats, "integer": RUNTIMES["integer"]}
        if timesteps != max(options.timesteps):
            chosen.pop("compiled", None)  # which takes most of a minute
        made, _ = prepare(chosen, shown, images)
        runs |= {(TERNARY, name, timesteps): run for name, run in made.items()}
    ann = ann_of(network)
    calibrate(ann, options.size)
    made, _ = prepare(floats, ann, images)
    runs |= {(ANN, name, None): run for name, run in made.items()}
    if jelly := _jelly(options.network, max(options.timesteps)):
        calibrate(jelly, options.size)
        runs[JELLY, "eager", max(options.timesteps)] = lambda: jelly(images)
    with tempfile.TemporaryDirectory() as folder:
        with torch.enable_grad():
            sessions = onnx_ann(ann, images, Path(folder), options.threads)
        runs |= {(ANN, name, None): run for name, run in sessions.items()}
        rounds = max(min(options.rounds, 9), options.rounds // batch)
        times = in_turn(runs, "cpu", rounds=rounds)
    torch.compiler.reset()  # else the next batch's networks count as the same ones, compiled too often
    medians = {name: statistics.median(times[ANN, name, None]) for name in made}
    base = times[ANN, min(medians, key=lambda name: medians[name]), None]
    return [
        {
            "batch": batch,
            "network": kind,
            "runtime": runtime,
            "T": timesteps,
            "fastest, ms": 1e3 * min(own),
            "median, ms": 1e3 * statistics.median(own),
            "images/s": batch / statistics.median(own),
            "time / ANN": ratio(own, base),
            "fastest / ANN's fastest": min(own) / min(base),
        }
        for (kind, runtime, timesteps), own in times.items()
    ]


def _jelly(network: str, timesteps: int) -> rivals.SpikingJellyNetwork | None:
    known = {"resnet18": rivals.spiking_resnet18, "resnet34": rivals.spiking_resnet34}
    return known[network](timesteps) if network in known and JELLY not in rivals.missing() else None


def _memory(network: SpikingNetwork, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pt"
        torch.save(network, file)
        return measure_memory(IN_MEMORY, file, batches=options.batches, size=options.size, threads=options.threads)


if __name__ == "__main__":
    main()
