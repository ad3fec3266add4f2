"""Feed in what is broken or was made to do harm: none may run code, hang, take memory, or pass for another.

    python -m benchmarks.hostile [COUNT] [SEED] [SOURCE ...]

Each source of cases (SOURCES: networks' folders, checkpoints, weights of the published code, transforms, run folders)
is a module beside this one with a SOURCE: something sound, kinds of changes to it, and what a user would do with it.
COUNT (2000) changes in turn, by a random generator with a seed (0); each must end in a refusal of the kind that is
documented, or in what the sound one gives. No case may take more than SECONDS of the processor, or more than LONGEST
seconds of waiting; all together may not take more than MEGABYTES more than before. Prints the counts; ends with
status 1 if one did otherwise.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

SOURCES = ["hostile_folders", "hostile_checkpoints", "hostile_imports", "hostile_transforms", "hostile_runs"]
"""Modules with a SOURCE. Another one joins by its name."""

SECONDS, LONGEST, MEGABYTES = 10.0, 120, 1000.0

Kind: TypeAlias = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Source:
    """Cases of one sort.

    Attributes:
        name: What they are, in the plural.
        make: Puts something sound into an empty folder and gives its path.
        kinds: Changes to it.
        use: What a user does with it; gives something to be looked at by ``is_same``.
        is_same: Whether that is what the sound one gives.
        refusals: The errors that a refusal may be.
        may_pass: Kinds that may leave it as it was: a byte of white space, a key that occurs twice.
        must_pass: Kinds that change nothing that is read.
    """

    name: str
    make: Callable[[Path], Path]
    kinds: Sequence[Kind]
    use: Callable[[Path], Any]
    is_same: Callable[[Any], bool]
    refusals: tuple[type[Exception], ...]
    may_pass: Collection[Kind] = ()
    must_pass: Collection[Kind] = ()

    def outcomes(self, kind: Kind) -> set[str]:
        """What may come of such a change."""
        if kind in self.must_pass:
            return {"the same"}
        return {"refused", "the same"} if kind in self.may_pass else {"refused"}

    def outcome(self, path: Path) -> str:
        """What came of using it."""
        try:
            return "the same" if self.is_same(self.use(path)) else "something else, silently"
        except self.refusals:
            return "refused"
        except Exception as error:  # whatever else comes out is what this program looks for
            return f"{type(error).__name__}: {error}"


class Harm(Exception):  # noqa: N818
    """What a pickle in these files does when it is loaded."""

    def __reduce__(self) -> Any:
        return exec, ("import os; os.environ['TSPIKE_HARMED'] = '1'",)


def run(sources: Sequence[Source], count: int, seed: int = 0) -> int:
    """Make and use the cases; gives how many did otherwise than they must."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    faults: list[str] = []
    slowest = 0.0
    start = _peak()
    for number in range(count):
        source = sources[number % len(sources)]
        kind = source.kinds[number // len(sources) % len(source.kinds)]
        case = f"{number} ({source.name}, {kind.__name__})"
        before = _peak()
        with tempfile.TemporaryDirectory() as scratch:
            path = source.make(Path(scratch))
            kind(path, rng)
            took = -time.process_time()
            with _at_most(LONGEST):
                outcome = source.outcome(path)
            took += time.process_time()
        slowest = max(slowest, took)
        is_right = outcome in source.outcomes(kind)
        found[f"{source.name}, {kind.__name__}: {outcome if is_right else 'FAULT'}"] += 1
        if not is_right:
            faults.append(f"{case}: {outcome}")
        if took > SECONDS:
            faults.append(f"{case} took {took:.1f} s")
        if _peak() - before > MEGABYTES:
            faults.append(f"{case} took {_peak() - before:.0f} MB")
    if "TSPIKE_HARMED" in os.environ:
        faults.append("code was run")
    for outcome, times in sorted(found.items()):
        print(f"{times:6} {outcome}")
    names = ", ".join(source.name for source in sources)
    print(f"{count} {names}, {len(faults)} faults; slowest {slowest:.2f} s, memory grew by {_peak() - start:.0f} MB")
    for fault in faults:
        print(f"FAULT {fault}")
    return len(faults)


def main(count: int | str = 2000, seed: int | str = 0, *names: str) -> int:
    """Run the cases of the sources of these names, by default of all."""
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names or SOURCES]
    return run([module.SOURCE for module in modules], int(count), int(seed))


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Interrupt what waits for ever, such as for the other end of a pipe."""

    def interrupt(*_: Any) -> None:
        raise RuntimeError(f"still not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
