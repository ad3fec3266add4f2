"""SIGTERM, by which schedulers and clusters ask a process to end: noted, so that a training can stop where it may."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopSignal"]


class StopSignal:
    """Notes the first SIGTERM while it listens; a second one goes to whoever listened before.

    Attributes:
        came: Whether there was one.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None
        self._listens = False

    def listen(self) -> None:
        """Take over from whoever listens now; Python lets the main thread do so alone."""
        self.came = False
        if threading.current_thread() is threading.main_thread():
            self._before, self._listens = signal.signal(signal.SIGTERM, self._note), True

    def forget(self) -> None:
        """Give way to who listened before."""
        if self._listens:
            # None: a listener that was not installed from Python
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)
            self._listens = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came and callable(self._before):
            self._before(number, frame)
        self.came = True
