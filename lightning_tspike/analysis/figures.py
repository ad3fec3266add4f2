"""Figures of a training run, as matplotlib draws them; no window, no global state."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = [
    "plot_amplitudes",
    "plot_curves",
    "plot_energy",
    "plot_firing_rates",
    "plot_histograms",
    "plot_neuron_amplitudes",
    "plot_over_time",
    "thinned",
]

T = TypeVar("T")

POSITIVE, NEGATIVE, NEUTRAL = "#c1443c", "#3b6fb6", "#8a8f98"

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Label -> (steps, values)."""


def plot_amplitudes(history: Mapping[int, Mapping[str, float]], *, cancelled: Collection[str] = ()) -> Figure:
    """Amplitude by depth: one line for each step that was logged, the darker the later.

    Args:
        history: Step -> layer in the order of depth -> amplitude (of channels: their mean).
        cancelled: Layers whose amplitude a norm divides out; they are marked.
    """
    layers = list(next(iter(history.values())))
    figure, axes = _figure(max(6.0, 1.5 + 0.28 * len(layers)), 4.6)
    colours = colormaps["viridis_r"]
    steps = sorted(history)
    for step in thinned(steps, 24):
        values = [history[step].get(layer, math.nan) for layer in layers]
        axes.plot(range(len(layers)), values, ".-", color=colours((step - steps[0]) / max(1, steps[-1] - steps[0])))
    axes.axhline(1, color=NEUTRAL, linewidth=0.8, zorder=0)
    _name_layers(axes, [f"{layer} (cancelled)" if layer in cancelled else layer for layer in layers])
    axes.set_ylabel("amplitude")
    norm = Normalize(steps[0], max(steps[-1], steps[0] + 1))
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="step")
    return _literal(figure)


def plot_over_time(series: Series, ylabel: str) -> Figure:
    """One line for each layer over the steps, coloured by depth."""
    figure, axes = _figure(8, 4.2)
    colours = colormaps["plasma"]
    for k, (name, (steps, values)) in enumerate(series.items()):
        axes.plot(steps, values, marker=_marker(steps), color=colours(0.8 * k / max(1, len(series) - 1)), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    _legend_beside(axes, len(series))
    return _literal(figure)


def plot_curves(panels: Mapping[str, Series]) -> Figure:
    """One panel for each quantity over the steps, such as loss and accuracy in training and validation."""
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    grid = _grid(figure, rows, columns)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, series) in zip(grid, panels.items(), strict=False):
        for name, (steps, values) in series.items():
            axes.plot(steps, values, marker=_marker(steps), label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.legend(frameon=False)
    return _literal(figure)


def plot_histograms(first: Mapping[str, Any], last: Mapping[str, Any]) -> Figure:
    """Membrane potentials of every layer in thresholds: the latest filled, the first as a line, thresholds marked.

    Args:
        first: Layer -> ``{"counts": [bins], "edges": [bins + 1], "fires": share}``.
        last: The same, later.
    """
    columns = min(4, len(last))
    rows = math.ceil(len(last) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.3 * rows), layout="constrained")
    panels = _grid(figure, rows, columns)
    for axes, (name, histogram) in zip(panels, last.items(), strict=False):
        edges = np.array(histogram["edges"])
        share = np.array(histogram["counts"]) / max(1, sum(histogram["counts"]))
        fires = np.abs((edges[1:] + edges[:-1]) / 2) >= 1
        axes.stairs(np.where(fires, 0, share), edges, fill=True, color=NEUTRAL)
        axes.stairs(np.where(fires, share, 0), edges, fill=True, color=POSITIVE)
        if name in first:
            before = first[name]["counts"]
            axes.stairs(np.array(before) / max(1, sum(before)), first[name]["edges"], color="black", linewidth=0.7)
        for threshold in (-1, 1):
            axes.axvline(threshold, color="black", linestyle="--", linewidth=0.8)
        axes.set_title(f"{name}: {histogram['fires']:.1%} fire", fontsize=8)
        axes.set_yticks([])
    for axes in panels[len(last) :]:
        axes.set_visible(False)
    figure.supxlabel("membrane potential / threshold", fontsize=9)
    return _literal(figure)


def plot_firing_rates(rates: Mapping[str, tuple[float, float]]) -> Figure:
    """Share of positive and of negative spikes, layer by layer: above and below the axis."""
    figure, axes = _figure(max(6.0, 1.5 + 0.28 * len(rates)), 4.2)
    places = range(len(rates))
    axes.bar(places, [positive for positive, _ in rates.values()], color=POSITIVE, label="positive")
    axes.bar(places, [-negative for _, negative in rates.values()], color=NEGATIVE, label="negative")
    axes.axhline(0, color="black", linewidth=0.8)
    _name_layers(axes, list(rates))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set_ylabel("firing rate")
    _legend_above(axes)
    return _literal(figure)


def plot_neuron_amplitudes(amplitudes: Mapping[str, Any]) -> Figure:
    """Amplitude of every layer, or the range and the mean of a layer's channels."""
    figure, axes = _figure(max(6.0, 1.5 + 0.28 * len(amplitudes)), 4.2)
    for place, amplitude in enumerate(amplitudes.values()):
        values = np.atleast_1d(np.asarray(amplitude, dtype=float))
        axes.vlines(place, values.min(), values.max(), color=POSITIVE, linewidth=2)
        axes.plot(place, values.mean(), "o", color=POSITIVE, markersize=5)
    axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
    _name_layers(axes, list(amplitudes))
    axes.set_ylabel("amplitude before folding")
    return _literal(figure)


def plot_energy(layers: Mapping[str, tuple[float, float]]) -> Figure:
    """Microjoules of every weighted layer, next to the ANN's, on a logarithmic axis."""
    figure, axes = _figure(max(6.0, 1.5 + 0.34 * len(layers)), 4.2)
    places = np.arange(len(layers))
    axes.bar(places - 0.2, [ours for ours, _ in layers.values()], 0.4, color=POSITIVE, label="spiking")
    axes.bar(places + 0.2, [ann for _, ann in layers.values()], 0.4, color=NEUTRAL, label="as ANN")
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")  # no powers of ten, which would be formulas
    _name_layers(axes, list(layers))
    axes.set_ylabel("uJ per image")
    _legend_above(axes)
    return _literal(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(min(width, 40.0), height), layout="constrained")
    return figure, figure.add_subplot()


def _grid(figure: Figure, rows: int, columns: int) -> list[Axes]:
    return [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)


def _legend_beside(axes: Axes, entries: int) -> None:
    if entries:
        columns = math.ceil(entries / 20)
        axes.legend(frameon=False, fontsize=6, ncols=columns, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _legend_above(axes: Axes) -> None:
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def _marker(steps: Sequence[float]) -> str:
    """Few points are marked: a line needs two."""
    return "." if len(steps) < 30 else ""


def thinned(things: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly chosen, the first and the last among them."""
    if len(things) <= most:
        return list(things)
    return [things[round(k * (len(things) - 1) / (most - 1))] for k in range(most)]


def _literal(figure: Figure) -> Figure:
    """A name is what it is: no dollar in it begins a formula, whatever the user's matplotlibrc says."""
    for text in figure.findobj(Text):
        text.set_usetex(False)
        text.set_parse_math(False)
    return figure
