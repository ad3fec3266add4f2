"""The section of the HTML report on the folded copies that FoldExport keeps."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.run_logs import RunLogs
from ..analysis.sections import Fact, ReportSection, SectionContent

__all__ = ["FOLD"]


def _draw(logs: RunLogs) -> SectionContent | None:
    # ModelCheckpoint's folder, and one more where a checkpoint's name has a slash in it (val/acc1)
    found = [file for depth in ("", "*/", "*/*/") for file in logs.folder.glob(f"{depth}*.folded/fold_report.json")]
    # the best epoch's rather than the last one's, which is written after it
    files = sorted(found, key=lambda file: (not file.parent.name.startswith("last"), file.lstat().st_mtime))
    if not files:
        return None
    file = files[-1].relative_to(logs.folder)
    content = logs.json(file)
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
    kept = sum(not neuron["folded"] for neuron in content["neurons"])
    return SectionContent(
        f"{file.parent}: {content['addition_only']:.1%} of the weighted layers, with "
        f"{content['addition_only_macs']:.1%} of the operations, need additions only; greatest relative deviation of "
        f"the folded network in float64 {content['deviation']:.1e}.",
        (),
        ("neuron layer", "amplitude before", "threshold after", "effect", "folded"),
        rows,
        [
            Fact(
                "additions alone",
                f"{content['addition_only_macs']:.1%}",
                f"of the folded network's operations; {kept or 'no'} amplitudes kept",
            )
        ],
    )


def _numbers(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:.4f}" if len(numbers) == 1 else f"{min(numbers):.4f} to {max(numbers):.4f}"


FOLD = ReportSection("Fold", _draw)
