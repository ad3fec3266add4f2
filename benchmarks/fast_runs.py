"""The recipe ``cifar10_fast`` at its full width: with a cost of synaptic operations, and its ANN twin.

    python -m benchmarks.fast_runs --data.root=FOLDER [--only TEXT]   # two hours each on a core; goes on where it was

Other options ``--data...`` are passed on to ``tspike fit``. The ANN is trained first where a run learns from it. Each
run leaves a line in benchmarks/results/fast_runs.jsonl, and fast_runs.md is written from these. The recipe as it is has
its figures on the card of ``tspike-cifar10-fast``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measuring import records, table
from .run_options import run_parser, split_arguments, train
from .training_runs import FitRun

ANN = "ANN"
T1 = "--model.timesteps=1"
COST = ("--model.synops_weight=3", "--model.synops_warmup_epochs=8")
TEACHER = ("--model.teacher=tspike_fast_resnet", "--model.teacher_weight=0.7", "--model.teacher_temperature=2")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    ANN: ("cifar10_fast", ("--model.neuron=none", T1, "--model.backbone_kwargs.norm_bias=0")),
    "T1_target0.57": ("cifar10_fast", (T1, "--model.synops_target=0.57", *COST)),
    "T1_target0.57_teacher": ("cifar10_fast", (T1, "--model.synops_target=0.57", *COST, *TEACHER)),
    "T1_target0.28": ("cifar10_fast", (T1, "--model.synops_target=0.28", *COST)),
    "sparse": ("cifar10_fast_sparse", ()),
}
TAUGHT = ("T1_target0.57_teacher", "sparse")  # by the ANN


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what has not been trained yet, and write the table."""
    parser = run_parser("python -m benchmarks.fast_runs")
    options, data = split_arguments(parser, arguments)
    lines = options.output / "fast_runs.jsonl"
    train(parser, options, lines, all_runs(data))
    write_table(lines, options.output / "fast_runs.md")


def all_runs(data: Sequence[str]) -> list[FitRun]:
    """One for each of RUNS."""

    def run(name: str, **ann: Any) -> FitRun:
        recipe, options = RUNS[name]
        return FitRun(name, recipe, tuple(data), options, {}, **ann)

    taught = {"ann": run(ANN), "ann_option": "--model.teacher_weights"}
    return [run(name, **(taught if name in TAUGHT else {})) for name in RUNS]


def write_table(lines: Path, page: Path) -> None:
    """Write what the lines say."""
    found = {line["name"]: line for line in records(lines)}
    text = [
        "# cifar10_fast: sparse runs and the ANN twin",
        "",
        "`python -m benchmarks.fast_runs --data.root=PATH`; seed 0, last epoch, folded, float32, 10,000 test images. "
        "*Share*: synaptic operations over the multiply-accumulates of the layers that read spikes, of all time steps.",
        "",
        table([_row(name, found[name]) for name in RUNS if name in found]).rstrip(),
        "",
        *(f"* {name}: `{found[name]['command']}`" for name in RUNS if name in found),
    ]
    page.write_text("\n".join(text) + "\n")


def _row(name: str, line: Mapping[str, Any]) -> dict[str, str]:
    rates = [neuron["positive"] + neuron["negative"] for neuron in line["neurons"].values()]
    return {
        "run": name,
        "T": str(line["timesteps"]),
        "accuracy, %": f"{100 * line['accuracy']:.2f}",
        "share": "" if line["share"] is None else f"{line['share']:.3f}",
        "firing rates by layer": ", ".join(f"{rate:.2f}" for rate in rates),
        "M synaptic operations": f"{line['synops'] / 1e6:.1f}" if rates else "",
        "M multiply-accumulates": f"{line['macs'] / 1e6:.1f}",
        "energy, uJ": f"{line['microjoules']:.1f}",
    }


if __name__ == "__main__":
    main()
