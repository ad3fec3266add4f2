"""How the command line ends on a mistake: one line for what a user can mend, a traceback for what only we can."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["explained"]

_HERE = Path(__file__).parents[1]
_PLACES = {_HERE, _HERE.parent / "callbacks", _HERE.parent / "zoo"}  # the last two lie beside it in a checkout

_WAYS_OUT = {
    errno.ENOSPC: "make room, or write to another disk",
    errno.EDQUOT: "make room, or write to another disk",
    errno.EACCES: "choose a place that you may read and write, or change its permissions",
    errno.EPERM: "choose a place that you may read and write, or change its permissions",
    errno.EROFS: "choose a place that can be written to",
}


@contextmanager
def explained() -> Iterator[None]:
    """End the process with one line on stderr and status 1 where an error is the user's to mend.

    These are what the system says of files and connections (OSError), what a check of this package or Lightning's
    MisconfigurationException explains, and too little memory on the accelerator. All else passes with its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)  # as shells count an end by SIGINT
    except BrokenPipeError:  # whoever read our output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not _is_explained(error):
            raise
        sys.exit("tspike: " + " ".join(_text(error).split()))


def _is_explained(error: Exception) -> bool:
    # by name, because torch and Lightning are slow to import, and not every command needs them
    if isinstance(error, OSError) or type(error).__name__ in ("MisconfigurationException", "OutOfMemoryError"):
        return True
    return type(error).__module__.startswith("lightning_tspike.") or _is_raised_here(error)


def _is_raised_here(error: Exception) -> bool:
    """Whether it comes of a ``raise`` statement in this package, whose text is meant for the user."""
    if not isinstance(error, (ValueError, LookupError, RuntimeError, ImportError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = any(Path(last.filename).is_relative_to(place) for place in _PLACES)
    return is_ours and (last.line or "").startswith("raise ")


def _text(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
    if "Original Traceback" in text:  # from a process that reads data: what it says itself comes last
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    if isinstance(error, OSError) and error.errno in _WAYS_OUT:
        return f"{text}; {_WAYS_OUT[error.errno]}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"{text} A smaller --data.batch_size needs less memory, and so does --model.memory=lean."
    return text
