"""What becomes of runs that are killed, told to stop, or short of disk: real processes, at random moments.

    python -m benchmarks.faults [--jobs 2] [--seed 0] [--only TEXT]

Each case starts ``tspike fit --config digits``, or a command that writes something, in a folder of its own, strikes and
looks at what is left: whether all processes ended, and how soon; whether any checkpoint, folded copy, report or export
is half written; and whether the run, resumed, ends with the weights of one that was left alone, bit for bit. Disks are
filled by mounting small ones, which takes root. Counts go to benchmarks/results/faults.md, and from there to
docs/reliability.md. Cases that benchmarks/results/faults.json has already are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lightning_tspike import zoo

from .measuring import RESULTS, command, machine, table, write

__all__ = ["Case", "Outcome", "all_cases", "main", "strike"]

TSPIKE = Path(sys.executable).with_name("tspike")
FIT = (
    "fit", "--config", "digits", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=5", "--trainer.log_every_n_steps=5", "--model.timesteps=2", "--data.batch_size=32",
    "--model.backbone_kwargs={layers: [1, 1], widths: [8, 16]}", "--report=true",
)  # fmt: skip
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")
RUN = Path("runs/digits/version_0")
PAGE = 4096  # bytes by which a disk in memory fills up
LIMIT = 120.0  # seconds within which everything has to end
WRITING = {  # what commands write, of a checkpoint beside them
    "fold": (("fold", "last.ckpt"), "last.folded"),
    "report": (("report", "run", "--output=report.html"), "report.html"),
    "export": (("export", "last.ckpt", "--output=net.onnx", "--overwrite"), "net.onnx"),
    "publish": (("zoo", "publish", "last.ckpt", "me/net", "--folder=folder"), "folder"),
}


@dataclass(frozen=True)
class Case:
    """A run, and what happens to it.

    Attributes:
        fault: ``"kill -9"``, ``"SIGTERM"`` or ``"full disk"``.
        what: ``"fit"``, or a command of WRITING.
        processes: Of the run.
        moment: When it is struck, as a share of the time that the run takes once it has a folder, or that the command
            takes; with a full disk, the size of the disk as a share of what the run writes.
        rank: Of the process that is struck.
    """

    fault: str
    what: str
    processes: int
    moment: float
    rank: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        status: Of the first process.
        seconds: From the strike until all processes had ended; infinite where they had not within LIMIT.
        orphans: Processes that were left then.
        broken: Files and folders that are half written.
        leftovers: Files under other names that are still there after the run went on.
        is_same: Whether it ended, in the end, with the weights of a run that was left alone.
        said: The end of what it said.
    """

    status: int
    seconds: float
    orphans: int
    broken: tuple[str, ...]
    leftovers: tuple[str, ...]
    is_same: bool
    said: str = ""


def all_cases(seed: int) -> list[Case]:
    """40 kills, 20 times SIGTERM, 10 full disks."""
    rng = random.Random(seed)
    found = [Case("kill -9", "fit", 1, rng.random()) for _ in range(24)]
    found += [Case("kill -9", "fit", 2, rng.random(), rng.randrange(2)) for _ in range(8)]
    found += [Case("kill -9", what, 1, rng.random()) for what in WRITING for _ in range(2)]
    found += [Case("SIGTERM", "fit", 1, rng.random()) for _ in range(14)]
    found += [Case("SIGTERM", "fit", 2, rng.random(), rng.randrange(2)) for _ in range(6)]
    # seen: a disk of more than about 0.6 of what the run leaves has room for all of it
    return found + [Case("full disk", "fit", 1, 0.55 * rng.random()) for _ in range(10)]


class Undisturbed:
    """Runs that were left alone: what they end with, and how long they take.

    Args:
        folder: For their files.
        processes: Of how many there is to be a run; that of one is needed.
    """

    def __init__(self, folder: Path, processes: Sequence[int] = (1, 2)) -> None:
        self.weights: dict[int, Any] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        for count in processes:
            place = folder / f"fit{count}"
            place.mkdir()
            process = _start(_fit_words(count), place)
            _await((place / RUN / "config.yaml").exists, process)
            begin = time.monotonic()
            _end_well(process, place)
            self.seconds["fit", count] = time.monotonic() - begin
            self.weights[count] = _weights(place)
        self.run = folder / "fit1" / RUN
        files = {file.stat().st_ino: file.stat().st_size for file in (folder / "fit1").rglob("*") if file.is_file()}
        self.size = sum(-(-size // PAGE) * PAGE for size in files.values())  # a folded copy may be there twice, linked
        for what in WRITING:
            place = self.place_for(folder / what)
            begin = time.monotonic()
            _end_well(_start(WRITING[what][0], place), place)
            self.seconds[what, 1] = time.monotonic() - begin
            assert not _broken(place), what

    def place_for(self, folder: Path) -> Path:
        """A folder in which a command finds what it reads."""
        folder.mkdir()
        (folder / "last.ckpt").write_bytes((self.run / "checkpoints/last.ckpt").read_bytes())
        (folder / "run").symlink_to(self.run)
        return folder


def strike(case: Case, undisturbed: Undisturbed, folder: Path) -> Outcome:
    """Do a case."""
    if case.what != "fit":
        return _strike_command(case, undisturbed, folder)
    folder.mkdir()
    words = _fit_words(case.processes)
    with _disk(folder, case, undisturbed) as grow:
        process = _start(words, folder)
        if case.fault != "full disk":
            _await((folder / RUN / "config.yaml").exists, process)
            time.sleep(case.moment * undisturbed.seconds["fit", case.processes])
            _hit(process, case)
        status, seconds, orphans = _ends(process)
        said = (folder / "log.txt").read_text()[-600:].replace(f"{folder}/", "")
        broken = _broken(folder)
        grow()
        if status:
            more = ["--ckpt_path=last"] if list(folder.rglob("last.ckpt")) else []
            _end_well(_start([*words, *more], folder), folder)
        is_same = _same(_weights(folder), undisturbed.weights[case.processes])
        return Outcome(status, seconds, orphans, broken, _leftovers(folder), is_same, said)


def _strike_command(case: Case, undisturbed: Undisturbed, folder: Path) -> Outcome:
    words, written = WRITING[case.what]
    place = undisturbed.place_for(folder)
    process = _start(words, place)
    time.sleep(case.moment * undisturbed.seconds[case.what, 1])
    _hit(process, case)
    status, seconds, orphans = _ends(process)
    broken = _broken(place)
    said = (place / "log.txt").read_text()[-600:]
    if status:
        _end_well(_start(words, place), place)
    is_whole = (place / written).exists() and not _broken(place)
    return Outcome(status, seconds, orphans, broken, (), is_whole, said)


def _fit_words(processes: int) -> list[str]:
    return [*FIT, *(TWO if processes == 2 else ())]


def _start(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [TSPIKE, *words], cwd=folder, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip


def _await(is_there: Any, process: subprocess.Popen[bytes]) -> None:
    while not is_there() and process.poll() is None:
        time.sleep(0.01)


def _end_well(process: subprocess.Popen[bytes], folder: Path) -> None:
    if status := process.wait(timeout=10 * LIMIT):
        raise RuntimeError(f"{process.args} ended with status {status}: {(folder / 'log.txt').read_text()[-2000:]}")


def _hit(process: subprocess.Popen[bytes], case: Case) -> None:
    """Send the signal to the process of that rank; one that has ended is past it."""
    pids = [process.pid]
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids += [int(pid) for pid in children if b"tspike" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(pids[min(case.rank, len(pids) - 1)], signal.SIGKILL if case.fault == "kill -9" else signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        pass


def _ends(process: subprocess.Popen[bytes]) -> tuple[int, float, int]:
    """Wait for all processes of the run: status of the first, seconds, how many were left."""
    begin = time.monotonic()
    while (left := _session(process.pid)) and time.monotonic() < begin + LIMIT:
        process.poll()
        time.sleep(0.02)
    seconds = time.monotonic() - begin if not left else float("inf")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return process.wait(), seconds, len(left)


def _session(leader: int) -> list[int]:
    """Processes of a session that are not over."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == leader and ") Z " not in (folder / "stat").read_text():
                found.append(int(folder.name))
        except OSError:  # it is over by now
            continue
    return found


def _weights(folder: Path) -> dict[str, Any]:
    """Of the run's last checkpoint."""
    last = max(folder.rglob("last.ckpt"), key=os.path.getmtime)
    saved = torch.load(last, weights_only=True)
    return {key: saved[key] for key in ("state_dict", "optimizer_states", "global_step")}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _broken(folder: Path) -> tuple[str, ...]:
    """What is half written under a name that somebody would open."""
    found = []
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".folded" or path.name == "folder":
                zoo.load(path)
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>")
            elif path.suffix == ".onnx":
                import onnx

                onnx.checker.check_model(str(path))
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    return tuple(found)


def _leftovers(folder: Path) -> tuple[str, ...]:
    return tuple(str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock")


@contextmanager
def _disk(folder: Path, case: Case, undisturbed: Undisturbed) -> Iterator[Any]:
    """A small disk at the folder for a case of that kind; what it gives makes it large enough."""
    if case.fault != "full disk":
        yield lambda: None
        return
    size = int(case.moment * undisturbed.size) + PAGE
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all cases and write the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose fault and command have it")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    cases = [case for case in all_cases(options.seed) if options.only in f"{case.fault} {case.what}"]
    known = _done(options.output / "faults.json")
    left = [case for case in cases if case not in known]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        undisturbed = Undisturbed(Path(scratch)) if left else None
        doing = [pool.submit(strike, case, undisturbed, Path(scratch, f"case{i}")) for i, case in enumerate(left)]
        for i, (case, done) in enumerate(zip(left, doing, strict=True), 1):
            known[case] = done.result()
            print(f"{i}/{len(left)} {case}: {known[case]}", flush=True)
    outcomes = [known[case] for case in cases]
    text = [
        "# Faults",
        "",
        f"`{command('faults', arguments)}`",
        "",
        table([_row(kind, cases, outcomes) for kind in dict.fromkeys(map(_kind, cases))]),
    ]
    results = [vars(case) | vars(outcome) for case, outcome in zip(cases, outcomes, strict=True)]
    results = [{name: value for name, value in result.items() if name != "said"} for result in results]
    facts = {"command": command("faults", arguments), "machine": machine("cpu"), "cases": results}
    write(options.output, "faults", facts, "\n".join(text))


def _done(file: Path) -> dict[Case, Outcome]:
    """What an earlier call has done: those cases are not done again."""
    if not file.exists():
        return {}
    return {
        Case(**{field.name: case[field.name] for field in fields(Case)}): Outcome(
            **{field.name: case[field.name] for field in fields(Outcome) if field.name in case}
        )
        for case in json.loads(file.read_text())["cases"]
    }


def _kind(case: Case) -> str:
    where = "tspike fit" if case.what == "fit" else "other commands"
    return f"{case.fault}, {where}" + (", two processes" if case.processes == 2 else "")


def _row(kind: str, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found = [outcome for case, outcome in zip(cases, outcomes, strict=True) if _kind(case) == kind]
    return {
        "fault": kind,
        "times": len(found),
        "no harm (the run was over, or had room)": sum(outcome.status == 0 for outcome in found),
        "longest until all had ended, s": f"{max(outcome.seconds for outcome in found):.1f}",
        "processes left": sum(outcome.orphans for outcome in found),
        "half written": sum(len(outcome.broken) for outcome in found),
        "ended as undisturbed ones": sum(outcome.is_same for outcome in found),
    }


if __name__ == "__main__":
    main()
