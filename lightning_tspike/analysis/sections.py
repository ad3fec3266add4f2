"""What a section of the HTML report is. Each callback declares its own, beside the tags that it logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from matplotlib.figure import Figure

from .figures import thinned
from .run_logs import RunLogs, Series

__all__ = [
    "BARS",
    "LINES",
    "Fact",
    "LayerTag",
    "ReportSection",
    "SectionContent",
    "evenly_chosen",
    "left_out",
    "thinned_series",
]

LINES, BARS, POINTS = 40, 200, 500
"""How many lines, bars and points of a line a figure can show."""

V = TypeVar("V")


@dataclass(frozen=True)
class LayerTag:
    """The tags of what is logged for each layer: ``KIND/<layer>``, or ``KIND/<layer>/<part>``.

    Args:
        kind: The first word of them all.

    Example:
        >>> FIRING_RATE = LayerTag("firing_rate")
        >>> FIRING_RATE("conv1", "positive")
        'firing_rate/conv1/positive'
    """

    kind: str

    def __call__(self, layer: str, part: str = "") -> str:
        """The tag to log under."""
        return "/".join([self.kind, layer, part] if part else [self.kind, layer])

    def series(self, scalars: Series, *parts: str) -> Series:
        """Layer -> what was logged of it.

        Args:
            scalars: All that a run has logged, by tag.
            parts: The part, or several of which each layer has one; ``""``, which is the default, for none.
        """
        wanted = [[part] if part else [] for part in parts or ("",)]
        found: Series = {}
        for tag, series in scalars.items():
            kind, *rest = tag.split("/")
            if kind == self.kind and rest and rest[1:] in wanted:
                found[rest[0]] = series
        return found


class Fact(NamedTuple):
    """A figure that the page begins with.

    Attributes:
        label: What it is.
        value: In a few characters.
        remark: More of it, in a line.
    """

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class SectionContent:
    """What a section shows; one that has nothing but facts is no section of its own.

    Attributes:
        text: A paragraph, plain text.
        pictures: Figures, each after a text for who cannot see it.
        columns: Header of a table.
        rows: Its rows; of very many the page shows the first, and says so.
        facts: What of it stands at the top of the page.
    """

    text: str = ""
    pictures: Sequence[tuple[str, Figure]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    facts: Sequence[Fact] = ()


@dataclass(frozen=True)
class ReportSection:
    """A section of the report on a run.

    Attributes:
        title: Its heading.
        draw: Makes its content from what a run has logged; None where there is nothing for this section. The run's
            folder may be anybody's, so it reads files by ``logs.json`` alone. LookupError, TypeError and ValueError
            mean that the logs are not as the callback writes them.
    """

    title: str
    draw: Callable[[RunLogs], SectionContent | None]


def evenly_chosen(things: Mapping[str, V], most: int) -> dict[str, V]:
    """At most so many of them, evenly chosen: layers are in the order of depth."""
    return {name: things[name] for name in thinned(list(things), most)}


def thinned_series(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """With as many points each as a line needs."""
    return {name: (thinned(steps, POINTS), thinned(values, POINTS)) for name, (steps, values) in series.items()}


def left_out(all_of_them: Mapping[str, object], drawn: Mapping[str, object], what: str) -> str:
    """A sentence on what is not drawn, or nothing where all is."""
    missing = len(all_of_them) - len(drawn)
    return f"Drawn are {len(drawn)} of {len(all_of_them):,} {what}; {missing:,} are left out." if missing else ""
