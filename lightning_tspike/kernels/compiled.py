"""A C++ file as a library of this process: compiled once by the machine's compiler, kept for the next process.

Whoever writes a library that a process loads runs code in it. So libraries are kept where the user alone can write, in
``$XDG_CACHE_HOME/lightning-tspike`` (default ``~/.cache``), and a folder that others own or can write to is not used:
each process compiles for itself then, in a temporary folder of its own that is gone when the library is loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["compiler", "load"]

_SECONDS = 30  # for one library, which takes one to two: a compiler that needs longer hangs
_DIGEST = hashlib.sha256().digest_size


def compiler() -> tuple[str, ...] | None:
    """The machine's C++ compiler: ``$CXX``, which may have arguments, ``c++``, ``g++`` or ``clang++``; None: none."""
    for words in (_words(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]):
        if words and (path := shutil.which(words[0])):
            return path, *words[1:]
    return None


def _words(command: str) -> list[str]:
    if shutil.which(command):  # a path with spaces in it
        return [command]
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark without its second
        return []


def load(source: Path, cxx: Sequence[str], flags: Sequence[str]) -> ctypes.CDLL:
    """Compile a C++ file where that was not done before, and load it.

    Args:
        source: The file.
        cxx: The compiler, see :func:`compiler`.
        flags: Its flags.

    Raises:
        OSError: There is nowhere to write to, or the library cannot be loaded.
        subprocess.SubprocessError: The compiler failed, or took more than half a minute.
    """
    programs = [(word, os.path.getmtime(path)) for word in cxx if (path := shutil.which(word))]
    identity = (source.read_bytes(), tuple(cxx), tuple(flags), programs, platform.machine())
    name = f"native-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    with _cache() as cache:
        if cache is not None and _is_whole(cache / name):
            with suppress(OSError):  # compiled on another machine with this home, for instance
                return ctypes.CDLL(str(cache / name))
        with tempfile.TemporaryDirectory(prefix="lightning-tspike-", ignore_cleanup_errors=True) as scratch:
            made = Path(scratch, name)
            _compile(source, cxx, flags, made)
            kept = cache is not None and _keep(made, cache / name)
            return ctypes.CDLL(str(cache / name if cache is not None and kept else made))


@contextmanager
def _cache() -> Iterator[Path | None]:
    """The folder of the user's libraries; None where there is none, or another user could have written to it."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (home if home.is_absolute() else Path.home() / ".cache") / "lightning-tspike"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written to
        yield None
        return
    handle = None
    try:
        with suppress(OSError):  # a link, or not ours to read
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if handle is None or not _is_own(os.fstat(handle)):
            warnings.warn(
                f"{folder} is a link, or another user owns it or can write to it, so compiled neurons are not kept "
                "there, and every process compiles them again; remove it, or set $XDG_CACHE_HOME to a folder of yours",
                stacklevel=2,
            )
            yield None
            return
        os.fchmod(handle, 0o700)
        # by its handle: whatever another user does to a folder above, this is the one that was looked at
        here = Path(f"/proc/self/fd/{handle}")
        yield here if here.exists() else folder
    finally:
        if handle is not None:
            os.close(handle)


def _is_own(facts: os.stat_result) -> bool:
    """Whether this user, and no other, can have written to it."""
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(library: Path) -> bool:
    """Whether a library of the cache is as :func:`_keep` wrote it."""
    try:
        facts = library.lstat()
        if not stat.S_ISREG(facts.st_mode) or not _is_own(facts):
            return False
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _keep(made: Path, library: Path) -> bool:
    """Put a library into the cache, its digest behind it (loaders do not read so far); whether that could be done."""
    partial = library.with_name(f".{uuid.uuid4().hex}")
    content = made.read_bytes()
    try:
        partial.write_bytes(content + hashlib.sha256(content).digest())
        partial.chmod(0o700)
        partial.replace(library)
    except OSError:  # no space, or a folder of that name
        with suppress(OSError):
            partial.unlink()
        return False
    return True


def _compile(source: Path, cxx: Sequence[str], flags: Sequence[str], library: Path) -> None:
    """Compile and link; whatever the compiler writes goes to the folder of ``library``."""
    parts = library.with_suffix(".o")
    deadline = time.monotonic() + _SECONDS
    # Linked without OpenMP: torch has loaded one already, whose threads torch.set_num_threads governs. A second one
    # would fight it for the cores.
    _run([*cxx, *flags, "-c", str(source), "-o", str(parts)], library.parent, deadline)
    _run([*cxx, "-shared", str(parts), "-o", str(library)], library.parent, deadline)


def _run(command: Sequence[str], folder: Path, deadline: float) -> None:
    """Run a command until it ends, or until the deadline, with all that it has started."""
    said = folder / "said.txt"  # not a pipe, which what the command has started would hold open
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, command, stderr=said.read_text(errors="replace"))
