"""Accuracy against time steps: fixed numbers of them, and as many as it takes to be sure.

    python -m benchmarks.early_exit [--fashion-mnist PATH] [--cifar10 PATH] [--nmnist PATH] [--output FOLDER]

Each trained entry of the zoo whose data are there (the digits come with scikit-learn) runs on its whole test set, with
the preprocessing of its recipe. PATH is what the recipe takes as data.root; of CIFAR-10 a folder with test.npz. Images
are shown for up to twice the T of training; recordings have T frames, and are cut into twice as many besides. From the
logits of every step follow the accuracy at each fixed T, and accuracy and mean T of early exit at each level of
confidence. What to be sure by, the softmax of the running mean or the margin between its two best, is compared by mean
accuracy over mean T. Then ``network.classify`` runs beside the network on all T steps at once: time, and whether it
decides as computed. Results: early_exit.json, .md and .png.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

import lightning_tspike as lt
from lightning_tspike.cli.data import recipe_data

from .measuring import RESULTS, command, in_turn, listing, machine, ratio, table, write

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


class Curve(NamedTuple):
    """Early exit at several thresholds."""

    mean_steps: list[float]
    accuracy: list[float]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.early_exit")
    for name in ("fashion-mnist", "cifar10", "nmnist"):
        parser.add_argument(f"--{name}", type=Path, help="folder of its data")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    sources = {
        "tspike-digits": ("digits", []),
        "tspike-fashion-mnist": ("fashion_mnist", [f"--data.root={options.fashion_mnist}"]),
        "tspike-cifar10": ("cifar10_small", ["--data.dataset=npz", f"--data.root={options.cifar10}"]),
        "tspike-nmnist": ("nmnist", [f"--data.root={options.nmnist}"]),
    }
    entries = [
        _measure(entry, recipe, words)
        for entry, (recipe, words) in sources.items()
        if "--data.root=None" not in words
    ]  # fmt: skip
    results = {"command": command("early_exit", arguments), "machine": machine("cpu"), "entries": entries}
    write(options.output, "early_exit", results, _markdown(results))
    _plot(options.output / "early_exit.png", entries)
    print(_markdown(results))
    return results


def _measure(entry: str, recipe: str, words: list[str]) -> dict[str, Any]:
    network = lt.zoo.load(entry)
    batches, labels = _test_set(recipe, words)
    most = network.timesteps
    is_events = batches[0].ndim == 5
    logits = _logits(network, batches, None if is_events else 2 * most)
    fixed = {t: _accuracy(mean, labels) for t, mean in enumerate(_running_means(logits), 1)}
    row: dict[str, Any] = {"entry": entry, "samples": len(labels), "T": most, "fixed T": fixed}
    if is_events:
        finer, _ = _test_set(recipe, [*words, f"--data.timesteps={2 * most}"])
        means = _running_means(_logits(network, finer, None))
        row[f"cut into {2 * most} frames, fixed T"] = {t: _accuracy(m, labels) for t, m in enumerate(means, 1)}
    for steps in dict.fromkeys((most, len(logits))):
        means = _running_means(logits[:steps])
        curve = _early_exit(means, labels, _softmax(means), torch.tensor(LEVELS))
        row[f"early exit, at most {steps}"] = [
            {"confidence": level, "mean T": t, "accuracy": a}
            for level, t, a in zip(LEVELS, *curve, strict=True)
        ]  # fmt: skip
        row[f"mean accuracy over mean T, at most {steps}"] = {
            "softmax": _area(means, labels, _softmax(means)),
            "margin": _area(means, labels, _margin(means)),
        }
    row["classify"] = _run(network, batches, labels, logits[:most])
    return row


def _test_set(recipe: str, words: list[str]) -> tuple[list[Tensor], Tensor]:
    """Its batches of images or frames, and all labels."""
    data = recipe_data(recipe, [*words, "--data.num_workers=0"])
    data.prepare_data()
    data.setup("test")
    images, labels = zip(*track(data.test_dataloader(), f"reading {recipe}"), strict=True)
    return list(images), torch.cat(labels)


@torch.no_grad()
def _logits(network: lt.SpikingNetwork, batches: Iterable[Tensor], timesteps: int | None) -> Tensor:
    """Of every time step, [T, N, K]."""
    parts = [network(x, per_step=True, timesteps=timesteps) for x in track(batches, "running all time steps")]
    return torch.cat(parts, 1)


def _running_means(logits: Tensor) -> Tensor:
    return logits.cumsum(0) / torch.arange(1, len(logits) + 1)[:, None, None]


def _accuracy(means: Tensor, labels: Tensor) -> float:
    return (means.argmax(-1) == labels).double().mean().item()


def _softmax(means: Tensor) -> Tensor:
    """Probability of the best class, [T, N]."""
    return means.softmax(-1).amax(-1)


def _margin(means: Tensor) -> Tensor:
    """Probability of the best class less that of the second best, [T, N]."""
    best = means.softmax(-1).topk(2).values
    return best[..., 0] - best[..., 1]


def _early_exit(means: Tensor, labels: Tensor, sure: Tensor, levels: Tensor) -> Curve:
    """Mean number of steps and accuracy where each sample ends at the first step that is sure enough."""
    right = means.argmax(-1) == labels
    curve = Curve([], [])
    for level in levels:
        ends = sure >= level
        ends[-1] = True
        first = ends.int().argmax(0)
        curve.mean_steps.append((first + 1).double().mean().item())
        curve.accuracy.append(right.gather(0, first[None]).double().mean().item())
    return curve


def _area(means: Tensor, labels: Tensor, sure: Tensor) -> float:
    """Mean accuracy over mean T from 1 to the most, over many thresholds; whatever their scale, the order counts."""
    if len(means) == 1:
        return _accuracy(means[0], labels)
    levels = sure[:-1].flatten().sort().values
    levels = levels[torch.linspace(0, len(levels) - 1, 500).long()].unique()
    steps, accuracy = (torch.tensor(values) for values in _early_exit(means, labels, sure, levels))
    order = steps.argsort(stable=True)
    steps, accuracy = steps[order], accuracy[order]
    steps = torch.cat([torch.tensor([1.0]), steps, torch.tensor([float(len(means))])])
    accuracy = torch.tensor([_accuracy(means[0], labels), *accuracy.tolist(), _accuracy(means[-1], labels)])
    return (torch.trapezoid(accuracy, steps) / (len(means) - 1)).item()


def _run(network: lt.SpikingNetwork, batches: list[Tensor], labels: Tensor, logits: Tensor) -> dict[str, Any]:
    """``classify`` at its default confidence beside all time steps at once."""
    decisions = [network.classify(x) for x in track(batches, "deciding early")]
    classes, steps = (torch.cat([getattr(d, name) for d in decisions]) for name in ("classes", "steps"))
    means = _running_means(logits)
    ends = _softmax(means) >= 0.9
    ends[-1] = True
    first = ends.int().argmax(0)
    same = (classes == means.argmax(-1).gather(0, first[None])[0]) & (steps == first + 1)
    ratios = []
    with torch.no_grad():
        for x in track(batches[:10], "timing"):
            ways = {"early": lambda x=x: network.classify(x), "all": lambda x=x: network(x)}
            times = in_turn(ways, "cpu", rounds=5, uncounted=1)
            ratios.append(ratio(times["early"], times["all"]))
    return {
        "confidence": 0.9,
        "accuracy": (classes == labels).double().mean().item(),
        "mean T": steps.double().mean().item(),
        "decides as computed": same.double().mean().item(),
        "batch": len(batches[0]),
        "time / all T steps at once": statistics.median(ratios),
    }


def _markdown(results: dict[str, Any]) -> str:
    entries = results["entries"]
    longest = max(len(row["fixed T"]) for row in entries)
    fixed = [
        {"entry": row["entry"], "T of training": row["T"]}
        | {f"T = {t}": _percent(row["fixed T"].get(t)) for t in range(1, longest + 1)}
        for row in entries
    ]
    for row in entries:
        if finer := row.get(f"cut into {2 * row['T']} frames, fixed T"):
            name = f"{row['entry']}, cut into {2 * row['T']} frames"
            fixed.append({"entry": name, "T of training": row["T"]} | {f"T = {t}": _percent(finer[t]) for t in finer})
    early = []
    for row in entries:
        at_levels = row[f"early exit, at most {row['T']}"]
        early.append(
            {"entry": row["entry"], "all T": _percent(row["fixed T"][row["T"]])}
            | {f"{x['confidence']:g}": f"{_percent(x['accuracy'])} at {x['mean T']:.2f}" for x in at_levels}
        )
    ran = [
        {
            "entry": row["entry"],
            "accuracy": _percent(row["classify"]["accuracy"]),
            "mean T": f"{row['classify']['mean T']:.2f} of {row['T']}",
            "decides as computed": _percent(row["classify"]["decides as computed"]),
            "batch": row["classify"]["batch"],
            "time / all T steps at once": row["classify"]["time / all T steps at once"],
        }
        for row in entries
    ]
    criteria = [
        {"entry": row["entry"], "at most": steps}
        | {k: f"{100 * v:.3f} %" for k, v in row[f"mean accuracy over mean T, at most {steps}"].items()}
        for row in entries
        for steps in dict.fromkeys((row["T"], len(row["fixed T"])))
    ]
    return (
        f"# Early exit\n\n`{results['command']}`\n\n{listing(results['machine'])}\n\n"
        f"## Test accuracy at a fixed T\n\n{table(fixed)}\n"
        f"## Early exit: test accuracy at mean T, by confidence, at most T of training\n\n{table(early)}\n"
        f"## network.classify(x), confidence 0.9\n\n{table(ran)}\n"
        "## What to be sure by: mean test accuracy over mean T from 1 to the most, softmax or margin\n\n"
        f"{table(criteria)}"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _plot(path: Path, entries: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(entries), figsize=(3.6 * len(entries), 3.4), layout="constrained", squeeze=False)
    for axis, row in zip(axes[0], entries, strict=True):
        early = row[f"early exit, at most {len(row['fixed T'])}"]
        steps, accuracy = [x["mean T"] for x in early], [100 * x["accuracy"] for x in early]
        axis.plot(steps, accuracy, marker="o", label="early exit, by confidence")
        fixed = row["fixed T"]
        axis.plot(list(fixed), [100 * a for a in fixed.values()], marker="s", linestyle="--", label="fixed T")
        axis.axvline(row["T"], color="grey", linewidth=0.8)
        axis.set(title=row["entry"], xlabel="mean number of time steps", ylabel="test accuracy, %")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
