"""What a training run came to, as a file of its folder and at the top of its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from .run_logs import RunLogs
from .sections import Fact, ReportSection, SectionContent

__all__ = ["RUN", "RunSummary"]


@dataclass(frozen=True)
class RunSummary:
    """The end of a run, ``run_summary.json``.

    Attributes:
        network: Name of its backbone or class.
        timesteps: T.
        parameters: How many are trained.
        epochs: Of the run.
        seconds: Of training, in all sittings; None where nobody counted them.
        images: How many test images there are; 0 where nothing was tested, and then the others are 0 as well.
        unfolded_accuracy: On these, of the best checkpoint.
        folded_accuracy: Of its folded copy.
        decisions_that_differ: Between the two.
    """

    FILE = "run_summary.json"

    network: str
    timesteps: int
    parameters: int
    epochs: int
    seconds: float | None
    images: int = 0
    unfolded_accuracy: float = 0.0
    folded_accuracy: float = 0.0
    decisions_that_differ: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def _draw(logs: RunLogs) -> SectionContent | None:
    content = logs.json(RunSummary.FILE)
    if content is None:
        return None
    run = RunSummary(**{field.name: content[field.name] for field in fields(RunSummary)})
    facts = [Fact("network", run.network, f"T = {run.timesteps:d}, {run.parameters:,} parameters")]
    if run.images:
        facts.append(
            Fact(
                "test accuracy, folded",
                f"{run.folded_accuracy:.2%}",
                f"unfolded {run.unfolded_accuracy:.2%}; {run.decisions_that_differ:,} of {run.images:,} differ",
            )
        )
    time = "" if run.seconds is None else _duration(run.seconds)
    facts.append(Fact("training", time or f"{run.epochs:,} epochs", f"{run.epochs:,} epochs" if time else ""))
    return SectionContent(facts=facts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


RUN = ReportSection("Run", _draw)
