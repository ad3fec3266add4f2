"""One self-contained HTML page of what a training run has logged; ``tspike report RUN_DIR``."""

from __future__ import annotations

import base64
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from ..files.atomic import whole_file
from . import figures
from .energy import EnergyReport, LayerEnergy, energy_row
from .run_logs import ReportError, Series, read_json, read_logs

__all__ = ["ReportError", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


PANELS, LINES, BARS, ROWS, POINTS, BINS = 24, 40, 200, 1000, 500, 1000
"""What a page can show, and a browser can draw: of more, some are chosen, and the page says how many are left out."""

V = TypeVar("V")


@dataclass(frozen=True)
class _Section:
    title: str
    text: str
    pictures: Sequence[tuple[str, str]] = ()  # alternative text, data URI
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


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
    logs = read_logs(run)
    try:
        sections = [section for make in _SECTIONS for section in make(run, logs.scalars)]
    except ReportError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ReportError(
            f"the logs in {run.resolve()} are not as lightning-tspike's callbacks write them: {error!r}"
        ) from error
    notes = [f"{logs.skipped:,} values at steps that are not finite are left out."] if logs.skipped else []
    template = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template("report.html.jinja")
    page = template.render(run=run.resolve(), sections=sections, notes=notes, most_rows=ROWS)
    with whole_file(output, foreseeable=False) as stream:
        stream.write(page.encode(errors="replace"))
    return output


def _curves(_run: Path, scalars: Series) -> Iterator[_Section]:
    panels: dict[str, Series] = defaultdict(dict)
    for stage in ("train", "val", "test"):
        for tag, series in scalars.items():
            if tag.startswith(f"{stage}/"):
                panels[tag.removeprefix(f"{stage}/")][stage] = series
    if panels:
        ordered = dict(sorted(panels.items(), reverse=True))
        drawn = {quantity: _thinned(ordered[quantity]) for quantity in list(ordered)[:PANELS]}
        text = _left_out(ordered, drawn, "quantities")
        yield _Section(
            "Learning curves", text, [("Loss and accuracy over the steps", _data_uri(figures.plot_curves(drawn)))]
        )


def _amplitudes(_run: Path, scalars: Series) -> Iterator[_Section]:
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
    series = live | cancelled
    drawn = _some(series, LINES)
    figure = figures.plot_over_time(_thinned(drawn), "amplitude")
    yield _Section(
        "Amplitudes",
        "Learned spike amplitudes by layer (of channels: their mean). Of those that a norm divides out nothing drives "
        f"the value; those that are frozen at 1 are not listed. {_left_out(series, drawn, 'layers')}",
        [("Amplitude of every layer over the steps", _data_uri(figure))],
        ("neuron layer", "effect", "first", "last", "norm of the last gradient"),
        rows,
    )


def _membranes(run: Path, _scalars: Series) -> Iterator[_Section]:
    if not os.path.lexists(file := run / "membrane.json"):
        return
    content = read_json(file)
    first, last = content["first"], content["last"]
    rows = [(name, f"{h['fires']:.4f}", f"{h['no_gradient']:.4f}") for name, h in last["layers"].items()]
    if any(len(h["edges"]) > BINS + 1 for side in (first, last) for h in side["layers"].values()):
        raise ReportError(f"{file} has histograms of more than {BINS} bins")
    drawn = _some(last["layers"], LINES)
    yield _Section(
        "Membrane potentials",
        f"Before firing, in thresholds (dashed), at step {last['step']} (filled) and at step {first['step']} (line). "
        "Ternary neurons fire where it is red, binary ones on the right side only. What lies beyond the axis is in the "
        f"outermost bins. {_left_out(last['layers'], drawn, 'layers')}",
        [
            (
                "Histogram of every layer's membrane potential",
                _data_uri(figures.plot_histograms(first["layers"], drawn)),
            )
        ],
        ("neuron layer", "share that fires", "share without surrogate gradient"),
        rows,
    )


def _firing(_run: Path, scalars: Series) -> Iterator[_Section]:
    layers = [tag.split("/")[1] for tag in scalars if tag.startswith("firing_rate/") and tag.endswith("/positive")]
    if not layers:
        return
    last = {tag: values[-1] for tag, (_, values) in scalars.items()}
    rates = {name: (last[f"firing_rate/{name}/positive"], last[f"firing_rate/{name}/negative"]) for name in layers}
    bars, lines = _some(rates, BARS), _some(rates, LINES)
    totals = {}
    for name in lines:
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
        f"entropy of a spike in bits, with its sign (at most 1.585) and without (at most 1). "
        f"{_left_out(rates, lines, 'layers')}",
        [
            ("Positive and negative firing rate of every layer", _data_uri(figures.plot_firing_rates(bars))),
            (
                "Firing rate of every layer over the steps",
                _data_uri(figures.plot_over_time(_thinned(totals), "firing rate")),
            ),
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


def _energy(run: Path, _scalars: Series) -> Iterator[_Section]:
    if not os.path.lexists(file := run / "energy.json"):
        return
    content = read_json(file)
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
        [("Energy of every weighted layer", _data_uri(figures.plot_energy(_some(layers, BARS))))],
        ("weighted layer", "MACs", "SynOps", "uJ", "MACs as ANN", "uJ as ANN"),
        [energy_row(report, layer) for layer in report.layers],
    )


def _fold(run: Path, _scalars: Series) -> Iterator[_Section]:
    # ModelCheckpoint's folder, and one more where a checkpoint's name has a slash in it (val/acc1)
    found = [file for depth in ("", "*/", "*/*/") for file in run.glob(f"{depth}*.folded/fold_report.json")]
    # the best epoch's rather than the last one's, which is written after it
    files = sorted(found, key=lambda file: (not file.parent.name.startswith("last"), file.lstat().st_mtime))
    if not files:
        return
    content = read_json(files[-1])
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


def _by_layer(scalars: Series, kind: str) -> Series:
    """Layer -> series of ``kind/<layer>``, or of ``kind/<layer>/mean`` where there is a number for each channel."""
    return {
        parts[1]: series
        for tag, series in scalars.items()
        if (parts := tag.split("/"))[0] == kind and parts[2:] in ([], ["mean"])
    }


def _numbers(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:.4f}" if len(numbers) == 1 else f"{min(numbers):.4f} to {max(numbers):.4f}"


def _some(things: Mapping[str, V], most: int) -> dict[str, V]:
    """At most so many of them, evenly chosen: layers are in the order of depth."""
    return {name: things[name] for name in figures.thinned(list(things), most)}


def _thinned(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """With so many points each that a line needs."""
    return {
        name: (figures.thinned(steps, POINTS), figures.thinned(values, POINTS))
        for name, (steps, values) in series.items()
    }


def _left_out(all_of_them: Mapping[str, object], drawn: Mapping[str, object], what: str) -> str:
    missing = len(all_of_them) - len(drawn)
    return f"Drawn are {len(drawn)} of {len(all_of_them):,} {what}; {missing:,} are left out." if missing else ""


def _data_uri(figure: Figure) -> str:
    """As SVG; in an image of its own, where its names collide with no other's."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
