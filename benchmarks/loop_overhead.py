"""What a training costs beyond a plain loop: the recipe ``cifar10_fast`` within Lightning, and by hand, in turn.

    python -m benchmarks.loop_overhead --data.root=FOLDER [--data.dataset=npz ...] [--steps 30] [--pairs 3]

* Lightning: ``tspike fit --config cifar10_fast`` with all of its callbacks, for two epochs of STEPS steps;
* by hand: the same network, optimizer, loss and precision in a loop of a few lines, on images augmented a batch
  at a time, without a Trainer, a loader, metrics or logs; validation is one pass over the images held out.

The median of a step, and the time between the last step of an epoch and the first of the next, where the recipe
validates, saves, folds and logs. From these, an epoch of all training images. The network has one time step, as in most
epochs. Results: benchmarks/results/loop_overhead.json and .md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch.nn import functional as F

from lightning_tspike.cli.data import recipe_data
from lightning_tspike.cli.main import main as tspike
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.training.module import TernarySNNModule
from lightning_tspike.training.optimization import OptimizerOptions, create_optimizer
from lightning_tspike.zoo import recipe_path

from .measuring import RESULTS, command, listing, machine, ratio, table, write

RECIPE = "cifar10_fast"
UNCOUNTED = 5  # steps


class Clock(L.Callback):
    """When steps began and ended, in the order of time; the last fit's are in :attr:`last`."""

    last: Clock

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        Clock.last = self

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended.append(time.perf_counter())


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure both in turn and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop_overhead")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options, words = parser.parse_known_args(arguments)
    if unknown := [word for word in words if not word.startswith("--data.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    times: dict[str, list[tuple[float, float]]] = {"Lightning": [], "by hand": []}
    data = recipe_data(RECIPE, words)
    data.setup("fit")
    for _ in range(options.pairs):
        times["by hand"].append(_by_hand(data, options.steps))
        times["Lightning"].append(_within_lightning(words, options.steps))
        print({name: measured[-1] for name, measured in times.items()}, flush=True)
    steps = len(data.train_set) / data.batch_size
    rows = []
    for name, measured in times.items():
        step, between = (statistics.median(values) for values in zip(*measured, strict=True))
        epoch = steps * step + between
        rows.append({"loop": name, "ms a step": 1000 * step, "s between epochs": between, "s an epoch": epoch})
    epochs = {name: [steps * step + between for step, between in measured] for name, measured in times.items()}
    results = {
        "command": command("loop_overhead", arguments),
        "machine": machine("cpu"),
        "rows": rows,
        "Lightning / by hand": ratio(epochs["Lightning"], epochs["by hand"]),
    }
    print(table(rows), results["Lightning / by hand"])
    facts = {"command": f"`{results['command']}`", **results["machine"]}
    facts["an epoch, Lightning / by hand"] = f"{results['Lightning / by hand']:.2f}"
    write(options.output, "loop_overhead", results, f"# {RECIPE}\n\n{listing(facts)}\n\n{table(rows)}")
    return results


def _within_lightning(words: Sequence[str], steps: int) -> tuple[float, float]:
    """Seconds of a step and between epochs."""
    limits = [f"--trainer.limit_train_batches={steps}", "--trainer.max_epochs=2", "--model.timesteps=1"]
    with tempfile.TemporaryDirectory() as folder:
        logger = "--trainer.logger.class_path=CSVLogger", f"--trainer.logger.init_args.save_dir={folder}"
        clock = "--trainer.callbacks+=benchmarks.loop_overhead.Clock"
        tspike(["fit", "--config", RECIPE, *words, *limits, "--model.warmup_epochs=1", *logger, clock])
    begun, ended = Clock.last.begun, Clock.last.ended
    # what comes between two steps, such as loading a batch, belongs to a step
    each = [after - before for before, after in pairwise(begun[UNCOUNTED:steps])]
    return statistics.median(each), begun[steps] - ended[steps - 1]


def _by_hand(data: Any, steps: int) -> tuple[float, float]:
    """Seconds of a step and of a validation."""
    torch.manual_seed(0)
    options = yaml.safe_load(recipe_path(RECIPE).read_text())["model"] | {"timesteps": 1}
    network = TernarySNNModule(**options).network.to(memory_format=torch.channels_last)
    network.model.conv1.requires_grad_(False)
    known = {option.name for option in fields(OptimizerOptions)}
    optimizer = create_optimizer(network, OptimizerOptions(**{k: v for k, v in options.items() if k in known}))
    part = data.train_set
    each = []
    for index in torch.randperm(len(part))[: steps * data.batch_size].split(data.batch_size):
        begin = time.perf_counter()
        pixels, labels = part.source.pixels([part.indices[i] for i in index.tolist()])
        x = part.batch_transform(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(x), torch.tensor(labels), label_smoothing=options["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    _validate(network, data)
    return statistics.median(each[UNCOUNTED:]), time.perf_counter() - begin


@torch.no_grad()
def _validate(network: SpikingNetwork, data: Any) -> float:
    network.eval()
    hits = 0
    with torch.autocast("cpu", torch.bfloat16):
        for x, y in data.val_dataloader():
            hits += int((network(x).argmax(1) == y).sum())
    return hits / len(data.val_set)


if __name__ == "__main__":
    # the recipe's Clock is that of the module of this name
    from benchmarks.loop_overhead import main as measure

    measure()
