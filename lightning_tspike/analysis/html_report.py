"""One self-contained HTML page of what a training run has logged; ``tspike report RUN_DIR``."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .figures import plot_curves
from .html_page import data_uri, write_page
from .run_logs import ReportError, RunLogs, read_logs
from .run_summary import RUN
from .sections import Fact, ReportSection, SectionContent, left_out, thinned_series

__all__ = ["ReportError", "write_report"]

PANELS, ROWS, OPEN_ROWS = 24, 1000, 40
"""What a page can show; of more, some are chosen, and the page says how many are left out. The last: of rows, what it
shows at once, where a longer table opens at a click."""

BROAD = 14.0
"""A figure of more inches is not made smaller to fit the page: one scrolls along it."""


def write_report(run: str | Path, output: str | Path | None = None, *, sections: Iterable[ReportSection]) -> Path:
    """Draw what the callbacks and loggers have left in a run's folder; nothing in the page needs a network.

    Read are ``metrics.csv`` (CSVLogger) or TensorBoard's event files, and what else a section reads; a section of which
    nothing was logged is left out.

    Args:
        run: The run's folder, e.g. ``runs/digits/version_0``.
        output: File to write; by default ``report.html`` in that folder.
        sections: What the page shows after the learning curves, in this order;
            ``lightning_tspike.callbacks.REPORT_SECTIONS`` are those of this package's callbacks.

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
        drawn = [(section.title, section.draw(logs)) for section in (RUN, _CURVES, *sections)]
        contents = {title: content for title, content in drawn if content is not None}
        shown = [_shown(title, content) for title, content in contents.items() if _has_body(content)]
    except ReportError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ReportError(
            f"the logs in {run.resolve()} are not as lightning-tspike's callbacks write them: {error!r}"
        ) from error
    notes = [f"{logs.skipped:,} values at steps that are not finite are left out."] if logs.skipped else []
    run = run.resolve()
    facts = [fact for content in contents.values() for fact in content.facts]
    return write_page(
        output,
        "report.html.jinja",
        name=f"{run.parent.name}/{run.name}",
        facts=facts,
        sections=shown,
        notes=notes,
        most_rows=ROWS,
        open_rows=OPEN_ROWS,
    )


def _has_body(content: SectionContent) -> bool:
    return bool(content.text or content.pictures or content.rows)


def _draw_curves(logs: RunLogs) -> SectionContent | None:
    panels = logs.quantities()
    if not panels:
        return None
    ordered = dict(sorted(panels.items(), reverse=True))
    drawn = {quantity: thinned_series(ordered[quantity]) for quantity in list(ordered)[:PANELS]}
    text = left_out(ordered, drawn, "quantities")
    facts = []
    if "val" in panels.get("acc1", {}):
        steps, accuracies = panels["acc1"]["val"]
        best = max(range(len(accuracies)), key=lambda i: accuracies[i])
        facts.append(Fact("validation accuracy", f"{accuracies[best]:.2%}", f"the best, at step {steps[best]:,.0f}"))
    return SectionContent(text, [("Loss and accuracy over the steps", plot_curves(drawn))], facts=facts)


_CURVES = ReportSection("Learning curves", _draw_curves)


def _shown(title: str, content: SectionContent) -> dict[str, Any]:
    """What the template gets: the content, with its figures as images."""
    pictures = [(text, _data_uri(figure), figure.get_figwidth() > BROAD) for text, figure in content.pictures]
    return {**vars(content), "title": title, "pictures": pictures}


def _data_uri(figure: Figure) -> str:
    """As SVG; in an image of its own, where its names collide with no other's."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return data_uri("image/svg+xml", file.getvalue())
