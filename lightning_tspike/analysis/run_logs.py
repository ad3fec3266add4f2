"""Read what a training run has logged. Anybody may have made the folder, so all that is in it is bounded.

Files must be regular ones in their own place: a pipe would never end, a link leads elsewhere. Text is cleaned of what
no name needs, numbers of what no axis can show.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import stat
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ReportError", "RunLogs", "Series", "read_json", "read_logs"]

Series = dict[str, tuple["array[float]", "array[float]"]]
"""Tag -> (steps, values), as logged."""

LOG_BYTES, EVENT_BYTES, JSON_BYTES, LINE_BYTES = 64 << 20, 128 << 20, 4 << 20, 1 << 20
TAGS, VALUES = 20_000, 5_000_000
NAME_LENGTH = 120
LARGEST = 1e30  # what is larger is no measurement, and axes overflow

# no link, and no waiting for the other end of a pipe; Windows has neither
_ITSELF = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class ReportError(ValueError):
    """There is nothing to report on, or a file of the run cannot be read; the message names it."""


@dataclass
class RunLogs:
    """What a run has logged: scalars, and files in its folder.

    Attributes:
        folder: The run's folder.
        scalars: Tag -> (steps, values).
        skipped: How many values were left out, because their step is not finite.
    """

    folder: Path
    scalars: Series = field(default_factory=dict)
    skipped: int = 0

    def quantities(self) -> dict[str, Series]:
        """Losses and metrics: quantity -> stage, of ``train``, ``val`` and ``test`` -> (steps, values)."""
        found: dict[str, Series] = defaultdict(dict)
        for stage in ("train", "val", "test"):
            for tag, series in self.scalars.items():
                if tag.startswith(f"{stage}/"):
                    found[tag.removeprefix(f"{stage}/")][stage] = series
        return dict(found)

    def json(self, name: str | Path) -> Any:
        """What a JSON file in the folder holds, with clean names and numbers, or None where there is no such file.

        Raises:
            ReportError: It is no JSON, nested too deeply, too large or no regular file.
        """
        file = self.folder / name
        return read_json(file) if os.path.lexists(file) else None


def read_logs(run: Path) -> RunLogs:
    """The scalars in ``metrics.csv`` (CSVLogger) or else in TensorBoard's event files.

    Raises:
        ReportError: There is neither; or a file is damaged, too large or no regular file.
    """
    if not run.is_dir():
        raise ReportError(f"there is no folder {run.resolve()}")
    if os.path.lexists(file := run / "metrics.csv"):
        return _read_csv(file)
    if files := sorted(run.glob("events.out.tfevents.*")):
        return _read_events(run, files)
    raise ReportError(
        f"{run.resolve()} has neither metrics.csv (CSVLogger) nor events.out.tfevents.* (TensorBoardLogger); give "
        "the folder of one run, such as runs/digits/version_0"
    )


def read_json(file: Path) -> Any:
    """What a JSON file holds, with clean names and numbers.

    Raises:
        ReportError: It is no JSON, nested too deeply, too large or no regular file.
    """
    try:
        return _clean(json.loads(_read(file, JSON_BYTES)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{file} cannot be read ({error}); remove it to get a report without it") from error


def _read_csv(file: Path) -> RunLogs:
    # without empty lines, of which millions would take half a minute
    lines = re.sub(r"\n\n+", "\n", _read(file, LOG_BYTES)).split("\n")
    if any(len(line) > LINE_BYTES for line in lines):
        raise ReportError(f"{file} has lines of more than {LINE_BYTES:,} characters, which no logger writes")
    logs, count = RunLogs(file.parent), 0
    try:
        rows = csv.reader(lines)
        columns = next(rows, [])
        if len(columns) > TAGS:
            raise ReportError(f"{file} has {len(columns):,} columns, expected at most {TAGS:,}")
        place = columns.index("step") if "step" in columns else len(columns)
        tags = [None if tag in ("step", "epoch") else _name(tag) for tag in columns]
        for row in rows:
            step = row[place] if place < len(row) else None
            for tag, value in zip(tags, row, strict=False):
                if tag is not None and value:
                    _append(logs, file, tag, step, value)
                    count += 1
            if count > VALUES:
                raise ReportError(f"{file} holds more than {VALUES:,} values: a report is for runs that log less often")
    except csv.Error as error:
        raise ReportError(f"{file} is no table of a CSVLogger: {error}") from error
    return logs


def _read_events(run: Path, files: list[Path]) -> RunLogs:
    sizes = [_size(file) for file in files]
    if sum(sizes) > EVENT_BYTES:
        raise ReportError(
            f"TensorBoard's event files in {run} have {sum(sizes):,} bytes, expected at most {EVENT_BYTES:,}; add a "
            "CSVLogger to runs that log as much"
        )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a while to import

    logs = RunLogs(run)
    try:
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()["scalars"]
        scalars = {tag: events.Scalars(tag) for tag in tags[:TAGS]}
    except Exception as error:  # what is no event, or of another kind, can raise anything
        raise ReportError(f"TensorBoard's event files in {run} cannot be read: {error!r}") from error
    for tag, logged in scalars.items():
        for event in logged:
            _append(logs, run, _name(tag), event.step, event.value)
    return logs


def _append(logs: RunLogs, file: Path, tag: str, step: Any, value: Any) -> None:
    try:
        at, number = float(step), float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ReportError(
            f"{file}: {tag} has the value {str(value)[:40]!r} at step {_shown(step)}, expected numbers"
        ) from error
    if not abs(at) < LARGEST:
        logs.skipped += 1
        return
    steps, values = logs.scalars.setdefault(tag, (array("d"), array("d")))
    steps.append(at)
    values.append(_number(number))


def _shown(step: object) -> str:
    return repr(step if step is None else str(step)[:40])


def _size(file: Path) -> int:
    facts = file.lstat()
    if not stat.S_ISREG(facts.st_mode):
        raise ReportError(f"{file} is not a regular file; remove it to get a report without it")
    return facts.st_size


def _read(file: Path, limit: int) -> str:
    """The text of a regular file; what is not UTF-8 is replaced."""
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | _ITSELF)) as stream:
            is_regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            content = stream.read(limit + 1) if is_regular else b""
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            raise ReportError(f"{file} cannot be read ({error}); remove it to get a report without it") from error
        is_regular = False
    if not is_regular:
        raise ReportError(f"{file} is not a regular file; remove it to get a report without it")
    if len(content) > limit:
        raise ReportError(f"{file} has more than {limit:,} bytes, which no run writes there")
    return content.decode("utf-8-sig", errors="replace")


def _clean(content: Any) -> Any:
    if isinstance(content, dict):
        return {_name(key): _clean(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_clean(value) for value in content]
    if isinstance(content, str):
        return _name(content)
    return _number(content) if isinstance(content, (int, float)) and not isinstance(content, bool) else content


def _name(text: str) -> str:
    """Fit for a page and a picture."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:NAME_LENGTH])


def _number(value: Any) -> Any:
    return value if abs(value) < LARGEST else math.nan
