"""A sign of life for what takes more than a moment: on a terminal's stderr; files and pipes get nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["counted", "waiting"]

T = TypeVar("T")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show what is done and for how long, until it is done."""
    with _progress(SpinnerColumn(), _text(), TimeElapsedColumn()) as progress:
        progress.add_task(text, total=None)
        yield


def counted(
    items: Iterable[T],
    text: str,
    *,
    unit: str,
    size: Callable[[T], int] = lambda item: 1,
    total: int | None = None,
) -> Iterator[T]:
    """The items, behind a bar that shows how many of them are done, how fast and how long the others will take.

    Args:
        items: What is gone through.
        text: What is done.
        unit: What is counted for the speed, ``"images"``.
        size: How many of these an item has; asked when it is done.
        total: How many items there are, by default their length, where they have one.
    """
    with _progress(_text(), BarColumn(), _Speed(), TimeRemainingColumn()) as progress:
        task = progress.add_task(text, total=total or length_hint(items) or None, done=0, unit=unit)
        done = 0
        for item in items:
            yield item
            done += size(item)
            progress.update(task, advance=1, done=done)


class _Speed(ProgressColumn):
    """Units a second, from the beginning."""

    def render(self, task: Task) -> Text:
        done, elapsed = task.fields["done"], task.elapsed
        return Text(f"{done / elapsed:,.0f} {task.fields['unit']}/s" if done and elapsed else "")


def _text() -> TextColumn:
    return TextColumn("{task.description}", markup=False)


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
