"""Accuracy against synaptic operations: kinds of neurons, each trained to several shares of operations.

    python -m benchmarks.frontier cifar10 --data.root=FOLDER         # hours on two cores; goes on where it was stopped
    python -m benchmarks.frontier fashion_mnist --data.root=FOLDER
    python -m benchmarks.frontier page                               # only writes docs/frontier.md

Other options ``--data...`` are passed on to ``tspike fit``: ``--data.dataset=npz`` for CIFAR-10 in npz files. The
networks are those of narrow_runs.py. With a target, synaptic operations beyond this share of the multiply-accumulates
cost something (``synops_target``). The main points are trained with three seeds. Of each run a line with its command
goes to benchmarks/results/narrow_runs_DATASET.jsonl, and docs/frontier.md is written from these.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from .measuring import records, table
from .narrow_runs import BACKBONE, DATASETS, EPOCHS, KINDS, RECIPE, SEEDS, narrow_run, results_file
from .run_options import run_parser, split_arguments, train
from .training_runs import FitRun

ROOT = Path(__file__).resolve().parents[1]
WITHIN = 0.005  # two accuracies that differ by no more count as equal
FRONTIER_KINDS = (
    "ternary, channel",
    "ternary, layer",
    "ternary, fixed",
    "ternary, 2 levels",
    "binary",
    "quantised ANN",
    "ANN",
)
TARGETS = (None, 0.5, 0.3, 0.15)
# with all seeds
MAIN_KINDS = ("ternary, channel", "binary", "quantised ANN", "ANN")
MAIN_TARGETS = (None, 0.3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what has not been trained yet, and write the page."""
    parser = run_parser("python -m benchmarks.frontier")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of each training (default: {EPOCHS})")
    parser.add_argument("dataset", choices=[*DATASETS, "page"])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "frontier.md")
    options, data = split_arguments(parser, arguments)
    if options.dataset != "page":
        lines = results_file(options.output, options.dataset)
        train(parser, options, lines, all_runs(options.dataset, options.epochs, data))
    write_page(options.output, options.page)


def all_runs(dataset: str, epochs: int, data: Sequence[str]) -> list[FitRun]:
    """Every run of a dataset, the first seed's before the others'."""
    runs = []
    for seed, target, kind in product(SEEDS, TARGETS, FRONTIER_KINDS):
        is_main = kind in MAIN_KINDS and target in MAIN_TARGETS
        if (seed and not is_main) or (target and KINDS[kind]["neuron"] == "none"):
            continue
        runs.append(narrow_run(dataset, kind, seed, data, target=target, epochs=epochs))
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# The page


def lines_of(folder: Path, dataset: str) -> list[dict[str, Any]]:
    """The lines of this benchmark's runs; others have theirs in the same file."""
    lines = records(results_file(folder, dataset))
    names = {run.name for epochs in {line["epochs"] for line in lines} for run in all_runs(dataset, epochs, [])}
    return [line for line in lines if line["name"] in names]


def points(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, in the order of FRONTIER_KINDS and TARGETS."""
    found = []
    for kind, target in product(FRONTIER_KINDS, TARGETS):
        same = [line for line in lines if (line["kind"], line["target"]) == (kind, target)]
        if not same:
            continue
        mean = {
            key: statistics.fmean(line[key] for line in same) for key in ("accuracy", "synops", "macs", "microjoules")
        }
        shares = [line["share"] for line in same if line["share"] is not None]
        found.append(
            {
                "kind": kind,
                "target": target,
                "T": same[0]["timesteps"],
                "seeds": len(same),
                **mean,
                "share": statistics.fmean(shares) if shares else None,
                "spread": statistics.stdev(line["accuracy"] for line in same) if len(same) > 1 else None,
            }
        )
    return found


def saved(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each kind the fewest operations at an accuracy within half a point of its own without a target."""
    rows = []
    for kind in FRONTIER_KINDS:
        of_kind = [point for point in found if point["kind"] == kind and point["synops"]]
        free = next((point for point in of_kind if point["target"] is None), None)
        if free is None:
            continue
        equal = [point for point in of_kind if point["accuracy"] >= free["accuracy"] - WITHIN]
        least = min(equal, key=lambda point: point["synops"])
        rows.append(
            {
                "kind": kind,
                "without a target, %": f"{100 * free['accuracy']:.2f}",
                "M operations": f"{free['synops'] / 1e6:.1f}",
                "with the fewest, %": f"{100 * least['accuracy']:.2f}",
                "M operations then": f"{least['synops'] / 1e6:.1f}",
                "of the first": f"{least['synops'] / free['synops']:.2f}",
            }
        )
    return rows


def write_page(results: Path, page: Path) -> None:
    """Write the page and its picture beside it from the results there are."""
    by_dataset = {name: lines_of(results, name) for name in DATASETS}
    by_dataset = {name: lines for name, lines in by_dataset.items() if lines}
    if not by_dataset:
        raise SystemExit(
            f"{results} has no runs of the frontier: train some first, python -m benchmarks.frontier --help"
        )
    found = {name: points(lines) for name, lines in by_dataset.items()}
    text = [
        "# Accuracy and synaptic operations",
        "",
        "Written by `python -m benchmarks.frontier`, from `benchmarks/results/narrow_runs_*.jsonl`, with the command "
        f"of each run. The recipe `{RECIPE}` with the narrow network `{BACKBONE}`, T = 1 in the first epochs and T = 2 "
        "in the last; ANN and quantised ANN (the same ternary activations, no memory) have no time steps. Test "
        "accuracy of the last epoch, folded, in float32. *Target*: the share of the multiply-accumulates (of all time "
        "steps, of the layers that read spikes) above which synaptic operations cost something in training; *share*: "
        "what it was on test images.",
        "",
        f"![Accuracy against synaptic operations]({page.stem}.png)",
    ]
    for name, lines in by_dataset.items():
        epochs = "/".join(map(str, sorted({line["epochs"] for line in lines})))
        text += [
            "",
            f"## {DATASETS[name]['title']}",
            "",
            f"{epochs} epochs; {lines[0]['ann_macs'] / 1e6:.1f} M multiply-accumulates a pass.",
            "",
            table([_row(point) for point in found[name]]).rstrip(),
        ]
        if rows := saved(found[name]):
            fewest = f"The fewest operations within {100 * WITHIN:g} points of what each kind reaches without a target:"
            text += ["", fewest, "", table(rows).rstrip()]
    page.parent.mkdir(parents=True, exist_ok=True)
    _plot(found, page.with_suffix(".png"))
    page.write_text("\n".join(text) + "\n")


def _row(point: Mapping[str, Any]) -> dict[str, str]:
    spread = "" if point["spread"] is None else f" ± {100 * point['spread']:.2f}"
    return {
        "kind": point["kind"],
        "target": "" if point["target"] is None else f"{point['target']:g}",
        "T": str(point["T"]),
        "accuracy, %": f"{100 * point['accuracy']:.2f}{spread}",
        "seeds": str(point["seeds"]),
        "share": "" if point["share"] is None else f"{point['share']:.3f}",
        "M synaptic operations": f"{point['synops'] / 1e6:.1f}" if point["synops"] else "",
        "M multiply-accumulates": f"{point['macs'] / 1e6:.1f}",
        "energy, uJ": f"{point['microjoules']:.1f}",
    }


def _plot(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(6 * len(found), 4.5), layout="constrained", squeeze=False)
    for axis, (name, of_dataset) in zip(axes[0], found.items(), strict=True):
        for number, kind in enumerate(FRONTIER_KINDS):
            of_kind = [point for point in of_dataset if point["kind"] == kind]
            if not of_kind:
                continue
            if not of_kind[0]["synops"]:
                axis.axhline(100 * of_kind[0]["accuracy"], color="black", linestyle=":", label=kind)
                continue
            axis.errorbar(
                [point["synops"] / 1e6 for point in of_kind],
                [100 * point["accuracy"] for point in of_kind],
                [100 * (point["spread"] or 0) for point in of_kind],
                marker="o",
                capsize=2,
                color=f"C{number}",
                label=kind,
            )
        axis.set(xscale="log", xlabel="synaptic operations per image, millions", title=DATASETS[name]["title"])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
