"""Trainings that benchmarks compare: each a ``tspike fit`` in a folder of its own, which goes on when it was cut off.

What a run is called, its command and what became of it are one line of a JSONL file; runs that have their line are not
done again. A run that was cut off goes on from the checkpoint of its last epoch. What is measured is the last epoch's
network, never the best one of several: folded, in float32, on all test images. Beside accuracy and operations a line
has what each layer's neurons send, and what folding changed.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tspike import SpikingNetwork, fold
from lightning_tspike._batches import first_images
from lightning_tspike._observe import observing
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.analysis.evaluation import evaluate
from lightning_tspike.analysis.spikes import FiringRate
from lightning_tspike.cli.data import recipe_data
from lightning_tspike.folding.report import FoldedNeuron
from lightning_tspike.folding.verification import verify
from lightning_tspike.functional import per_channel
from lightning_tspike.store.checkpoint import read_checkpoint

from .measuring import add_record, records

__all__ = ["FitRun", "train_all"]

ENERGY_IMAGES = 1000  # test images on which operations are counted
BINS = (64, 8.0)  # of histograms of membrane potentials: how many, and how far they reach, in thresholds


@dataclass(frozen=True)
class FitRun:
    """A training by a recipe.

    Attributes:
        name: Of the run and of its folder; no two have the same.
        recipe: Name of the recipe.
        data: Words that change its data, ``--data.dataset=npz``.
        options: Other words of ``tspike fit``.
        facts: What stands beside its results.
        ann: A run of an ANN that is trained before it, for its weights; None for none.
        ann_option: The option of ``tspike fit`` that takes its checkpoint.
    """

    name: str
    recipe: str
    data: tuple[str, ...]
    options: tuple[str, ...]
    facts: dict[str, Any]
    ann: FitRun | None = None
    ann_option: str | None = None

    @property
    def words(self) -> list[str]:
        """The command's words after ``tspike``, without those that say where data and weights are."""
        return ["fit", "--config", self.recipe, *self.options]


def train_all(runs: Iterable[FitRun], path: Path, folder: Path, jobs: int, threads: int = 1) -> None:
    """Do the runs that have no line yet, some at a time, and add a line for each.

    Args:
        runs: Which ones, in this order.
        path: The JSONL file.
        folder: Where they have their folders.
        jobs: How many at a time.
        threads: Of each.

    Raises:
        RuntimeError: A training failed; the message has the end of what it said. Those under way come to their end.
    """
    done = {record["name"] for record in records(path)}
    left = [run for run in runs if run.name not in done]
    anns = {run.ann.name: run.ann for run in left if run.ann is not None}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for training in [pool.submit(_train, ann, folder, threads) for ann in anns.values()]:
                training.result()
            trainings = {pool.submit(_train, run, folder, threads): run for run in left}
            for i, training in enumerate(as_completed(trainings), 1):
                run = trainings[training]
                record = {"name": run.name, "command": " ".join(["tspike", *run.words]), **run.facts}
                record |= _measured(run, training.result())
                add_record(path, record)
                print(f"{i}/{len(left)} {run.name}: {100 * record['accuracy']:.2f} %", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _train(run: FitRun, folder: Path, threads: int) -> Path:
    """Train, or go on; gives the checkpoint of the last epoch."""
    place = folder / run.name
    place.mkdir(parents=True, exist_ok=True)
    finished = place / "finished"
    if not finished.exists():
        words = [*run.words, *run.data]
        if run.ann is not None:
            words.append(f"{run.ann_option}={_last_checkpoint(folder / run.ann.name)}")
        if list(place.glob("runs/*/version_*/checkpoints/last.ckpt")):
            words += ["--ckpt_path", "last"]
        command = [sys.executable, "-c", "from lightning_tspike.cli.main import main; main()", *words]
        with (place / "log.txt").open("a") as log:
            code = subprocess.run(
                command, cwd=place, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
            ).returncode
        if code:
            end = (place / "log.txt").read_text()[-2000:]
            raise RuntimeError(f"{run.name}: tspike {' '.join(words)} ended with status {code}:\n{end}")
        finished.touch()
    return _last_checkpoint(place)


def _last_checkpoint(place: Path) -> Path:
    return max(place.glob("runs/*/version_*/checkpoints/last.ckpt"), key=os.path.getmtime)


def _measured(run: FitRun, checkpoint: Path) -> dict[str, Any]:
    data = recipe_data(run.recipe, [*run.data, "--data.batch_size=500", "--data.num_workers=0"])
    data.setup("test")
    saved = read_checkpoint(checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = saved.network.eval().to(device)
    folded, report = fold(network, integer_pools=True)
    before, result = (evaluate(net, data.test_dataloader()) for net in (network, folded))
    images = first_images(data.test_dataloader(), ENERGY_IMAGES, torch.float32)
    assert images is not None
    images = images.to(device)
    energy = measure_energy(folded, images)
    membranes = _membranes(network, images)
    return {
        "accuracy": result.accuracy,
        "training_seconds": saved.training_seconds,
        "timesteps": network.timesteps,
        "synops": energy.synops,
        "share": energy.synops_share(),
        "macs": energy.macs,
        "ann_macs": energy.ann_macs,
        "signs": energy.signs,
        "microjoules": energy.total_picojoules / 1e6,
        "neurons": {
            neuron.name: _of_layer(neuron, result.firing_rates[neuron.name]) | membranes[neuron.name]
            for neuron in report.neurons
        },
        "fold": {
            "unfolded_accuracy": before.accuracy,
            "decisions_that_differ": int((before.decisions != result.decisions).sum()),
            "deviation": verify(network, folded, images, tolerance=math.inf),  # in float32, where spikes may flip
            "addition_only_macs": report.addition_only_macs,
            "kept": report.kept,
        },
    }


def _of_layer(neuron: FoldedNeuron, rate: FiringRate) -> dict[str, Any]:
    """Of one layer of neurons: its spikes, their entropy in bits, and the amplitude before folding."""
    spikes = {key: getattr(rate, key) for key in ("positive", "negative", "entropy", "unsigned_entropy")}
    least, mean, most = min(neuron.amplitude), statistics.fmean(neuron.amplitude), max(neuron.amplitude)
    return {**spikes, "amplitude": [least, mean, most], "effect": neuron.effect}


@torch.no_grad()
def _membranes(network: SpikingNetwork, images: Tensor) -> dict[str, dict[str, Any]]:
    """By layer the membrane potential before firing, before folding: mean, deviation, and a histogram in thresholds."""
    found: dict[str, dict[str, Any]] = {}
    bins, reach = BINS

    def look(name: str, neuron: Any, x: Tensor, _spikes: Tensor) -> None:
        u = neuron.membrane_potential(x).float()
        in_thresholds = (u / per_channel(neuron.firing_threshold, u)).clamp(-reach, reach)
        counts = torch.histc(in_thresholds, bins, -reach, reach) / u.numel()
        shares = [round(share, 5) for share in counts.tolist()]
        found[name] = {"membrane": {"mean": float(u.mean()), "std": float(u.std()), "histogram": shares}}

    with observing(network.neurons(), look):
        network(images)
    return found
