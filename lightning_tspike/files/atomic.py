"""Put a finished file or folder in the place of an old one, so that there is always one of the two, whole."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replace_folder", "whole_file"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def whole_file(path: Path, *, foreseeable: bool = True) -> Iterator[BinaryIO]:
    """A file to write into, which is at ``path`` once all of it is on the disk.

    Until then it is beside it, as ``.NAME.partial``; what a killed process has left there is written again.

    Args:
        path: Where it is to be; a file that is there already goes.
        foreseeable: False for a folder that others may have filled, or where several processes write the same file:
            until then it has a name that nobody can foresee; what a killed process leaves there stays.

    Raises:
        OSError: It cannot be written; what was at ``path`` is as it was.
    """
    scratch = path.with_name(f".{path.name}.{'partial' if foreseeable else secrets.token_hex(8)}")
    try:
        scratch.unlink(missing_ok=True)
        with scratch.open("xb") as file:  # "x" follows no link that somebody puts there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def replace_folder(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; a folder that is there already goes.

    On Linux the two change places in one step (renameat2, since 3.15), whatever kills the process. Where the system or
    the filesystem cannot do that, two renames take its place: between them there is no folder at ``path``, and the old
    one is beside it, as ``NEW.old``.

    Args:
        new: A folder, on the same filesystem.
        path: Where it is to be.

    Raises:
        OSError: A rename failed; what was at ``path`` is as it was.
    """
    if not path.exists():
        os.rename(new, path)
    elif _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = new.with_name(f"{new.name}.old")
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change places; False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) == 0
