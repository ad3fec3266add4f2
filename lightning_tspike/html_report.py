"""One self-contained HTML page of what a training run has logged; ``tspike report RUN_DIR``."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from . import figures
from .energy import EnergyReport, LayerEnergy, energy_row

__all__ = ["ReportError", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


class ReportError(ValueError):
    """There is nothing to report on, or a file of the run cannot be read; the message names it."""


@dataclass(frozen=True)
class _Section:
    title: str
    text: str
    pictures: Sequence[tuple[str, str]] = ()  # alternative text, data URI
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


Scalars = dict[str, tuple[list[int], list[float]]]
"""Tag -> (steps, values), as logged."""


def write_report(run: str | Path, output: str | Path | None = None) -> Path:
    """Draw what the callbacks and loggers have left in a run's folder; nothing in the page needs a network.

    Read are ``metrics.csv`` (CSVLogger) or TensorBoard's event files, ``membrane.json``, ``energy.json``, and the
    ``fold_report.json`` of the newest folded checkpoint (the last epoch's only where there is no other); what is not
    there has no section.

    Args:
        run: The run's folder, e.g. ``runs/digits/version_0``.
        output: File to write; by default ``report.html`` in that folder.

    Returns:
        The file.

    Raises:
        ReportError: There is no such folder, it has no logs, or a file of it is damaged.
        OSError: The page cannot be written.
    """
    run = Path(run)
    output = Path(output) if output is not None else run / "report.html"
    scalars = _read_scalars(run)
    try:
        sections = [section for make in _SECTIONS for section in make(run, scalars)]
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ReportError(
            f"the logs in {run.resolve()} are not as lightning-tspike's callbacks write them: {error!r}"
        ) from error
    template = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template("report.html.jinja")
    page = template.render(run=run.resolve(), sections=sections)
    scratch = output.with_name(f".{output.name}.partial")
    scratch.write_text(page, encoding="utf-8")
    os.replace(scratch, output)
    return output


def _read_scalars(run: Path) -> Scalars:
    if not run.is_dir():
        raise ReportError(f"there is no folder {run.resolve()}")
    scalars: Scalars = defaultdict(lambda: ([], []))
    if (file := run / "metrics.csv").is_file():
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                for tag, value in row.items():
                    if tag not in ("step", "epoch") and value:
                        _append(scalars, file, tag, row.get("step"), value)
    elif any(run.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                scalars[tag][0].append(event.step)
                scalars[tag][1].append(event.value)
    else:
        raise ReportError(
            f"{run.resolve()} has neither metrics.csv (CSVLogger) nor events.out.tfevents.* (TensorBoardLogger); give "
            "the folder of one run, such as runs/digits/version_0"
        )
    return dict(scalars)


def _append(scalars: Scalars, file: Path, tag: str | None, step: Any, value: Any) -> None:
    try:
        at, number = int(step), float(value)
    except (TypeError, ValueError) as error:
        raise ReportError(f"{file}: {tag} has the value {value!r} at step {step!r}, expected numbers") from error
    steps, values = scalars[str(tag)]
    steps.append(at)
    values.append(number)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read ({error}); remove it to get a report without it") from error


def _curves(_run: Path, scalars: Scalars) -> Iterator[_Section]:
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = defaultdict(dict)
    for stage in ("train", "val", "test"):
        for tag, series in scalars.items():
            if tag.startswith(f"{stage}/"):
                panels[tag.removeprefix(f"{stage}/")][stage] = series
    if panels:
        figure = figures.plot_curves(dict(sorted(panels.items(), reverse=True)))
        yield _Section("Learning curves", "", [("Loss and accuracy over the steps", _data_uri(figure))])


def _amplitudes(_run: Path, scalars: Scalars) -> Iterator[_Section]:
    live, cancelled = _by_layer(scalars, "amplitude"), _by_layer(scalars, "amplitude_cancelled")
    gradients = _by_layer(scalars, "amplitude_gradient")
    if not live and not cancelled:
        return
    rows = [
        (
            name,
            effect,
            f"{values[0]:.4f}",
            f"{values[-1]:.4f}",
            f"{gradients[name][1][-1]:.2e}" if name in gradients else "",
        )
        for effect, series in (("live", live), ("cancelled by a norm", cancelled))
        for name, (_, values) in series.items()
    ]
    figure = figures.plot_over_time(live | cancelled, "amplitude")
    yield _Section(
        "Amplitudes",
        "Learned spike amplitudes by layer (of channels: their mean). Of those that a norm divides out nothing drives "
        "the value; those that are frozen at 1 are not listed.",
        [("Amplitude of every layer over the steps", _data_uri(figure))],
        ("neuron layer", "effect", "first", "last", "norm of the last gradient"),
        rows,
    )


def _membranes(run: Path, _scalars: Scalars) -> Iterator[_Section]:
    if not (file := run / "membrane.json").is_file():
        return
    content = _read_json(file)
    first, last = content["first"], content["last"]
    rows = [(name, f"{h['fires']:.4f}", f"{h['no_gradient']:.4f}") for name, h in last["layers"].items()]
    yield _Section(
        "Membrane potentials",
        f"Before firing, in thresholds (dashed), at step {last['step']} (filled) and at step {first['step']} (line). "
        "Ternary neurons fire where it is red, binary ones on the right side only. What lies beyond the axis is in the "
        "outermost bins.",
        [
            (
                "Histogram of every layer's membrane potential",
                _data_uri(figures.plot_histograms(first["layers"], last["layers"])),
            )
        ],
        ("neuron layer", "share that fires", "share without surrogate gradient"),
        rows,
    )


def _firing(_run: Path, scalars: Scalars) -> Iterator[_Section]:
    layers = [tag.split("/")[1] for tag in scalars if tag.startswith("firing_rate/") and tag.endswith("/positive")]
    if not layers:
        return
    last = {tag: values[-1] for tag, (_, values) in scalars.items()}
    rates = {name: (last[f"firing_rate/{name}/positive"], last[f"firing_rate/{name}/negative"]) for name in layers}
    totals = {}
    for name in layers:
        steps, positive = scalars[f"firing_rate/{name}/positive"]
        negative = scalars[f"firing_rate/{name}/negative"][1]
        totals[name] = steps, [p + n for p, n in zip(positive, negative, strict=True)]
    timesteps = sum(tag.startswith(f"firing_rate/{layers[0]}/positive_t") for tag in scalars)
    rows = [
        (
            name,
            *(f"{rate:.4f}" for rate in rates[name]),
            *(
                f"{last[f'firing_rate/{name}/positive_t{t}']:.3f} / {last[f'firing_rate/{name}/negative_t{t}']:.3f}"
                for t in range(1, timesteps + 1)
            ),
            f"{last[f'entropy/{name}/signed']:.3f}",
            f"{last[f'entropy/{name}/unsigned']:.3f}",
        )
        for name in layers
    ]
    yield _Section(
        "Firing rates",
        "Share of neurons that fire, by sign of the spike, on the latest training batch that was looked at; and the "
        "entropy of a spike in bits, with its sign (at most 1.585) and without (at most 1).",
        [
            ("Positive and negative firing rate of every layer", _data_uri(figures.plot_firing_rates(rates))),
            ("Firing rate of every layer over the steps", _data_uri(figures.plot_over_time(totals, "firing rate"))),
        ],
        (
            "neuron layer",
            "positive",
            "negative",
            *(f"t = {t}: + / -" for t in range(1, timesteps + 1)),
            "bits",
            "bits without sign",
        ),
        rows,
    )


def _energy(run: Path, _scalars: Scalars) -> Iterator[_Section]:
    if not (file := run / "energy.json").is_file():
        return
    content = _read_json(file)
    report = EnergyReport(
        tuple(LayerEnergy(**layer) for layer in content["layers"]), content["mac_picojoules"], content["ac_picojoules"]
    )
    layers = {
        layer.name: (report.picojoules(layer) / 1e6, report.mac_picojoules * layer.ann_macs / 1e6)
        for layer in report.layers
    }
    yield _Section(
        "Energy",
        f"An estimate for the folded network, per image: {report.macs:,.0f} multiply-accumulates "
        f"({report.mac_picojoules} pJ each) and {report.synops:,.0f} accumulates ({report.ac_picojoules} pJ each), "
        f"{report.total_picojoules / 1e6:.4g} uJ in all; as an ANN {report.ann_picojoules / 1e6:.4g} uJ.",
        [("Energy of every weighted layer", _data_uri(figures.plot_energy(layers)))],
        ("weighted layer", "MACs", "SynOps", "uJ", "MACs as ANN", "uJ as ANN"),
        [energy_row(report, layer) for layer in report.layers],
    )


def _fold(run: Path, _scalars: Scalars) -> Iterator[_Section]:
    # the best epoch's rather than the last one's, which is written after it
    files = sorted(
        run.rglob("*.folded/fold_report.json"),
        key=lambda file: (not file.parent.name.startswith("last"), file.stat().st_mtime),
    )
    if not files:
        return
    content = _read_json(files[-1])
    rows = [
        (
            neuron["name"],
            _numbers(neuron["amplitude"]),
            _numbers(neuron["threshold"]),
            neuron["effect"],
            "yes" if neuron["folded"] else "no, kept",
        )
        for neuron in content["neurons"]
    ]
    yield _Section(
        "Fold",
        f"{files[-1].parent.relative_to(run)}: {content['addition_only']:.1%} of the weighted layers, with "
        f"{content['addition_only_macs']:.1%} of the operations, need additions only; greatest relative deviation of "
        f"the folded network in float64 {content['deviation']:.1e}.",
        (),
        ("neuron layer", "amplitude before", "threshold after", "effect", "folded"),
        rows,
    )


_SECTIONS = (_curves, _amplitudes, _membranes, _firing, _energy, _fold)


def _by_layer(scalars: Scalars, kind: str) -> Scalars:
    """Layer -> series of ``kind/<layer>``, or of ``kind/<layer>/mean`` where there is a number for each channel."""
    return {
        parts[1]: series
        for tag, series in scalars.items()
        if (parts := tag.split("/"))[0] == kind and parts[2:] in ([], ["mean"])
    }


def _numbers(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:.4f}" if len(numbers) == 1 else f"{min(numbers):.4f} to {max(numbers):.4f}"


def _data_uri(figure: Figure) -> str:
    """As SVG; in an image of its own, where its names collide with no other's."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
