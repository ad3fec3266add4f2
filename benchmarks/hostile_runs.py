"""Run folders that are broken or were made to do harm, a source of cases for ``benchmarks.hostile``.

    python -m benchmarks.hostile_runs [COUNT] [SEED]

Pipes, links and devices in the place of files and of the report, names and numbers that no axis takes, thousands of
metrics, fields and lines without end, nested and spoiled JSON, flipped bytes, damaged event files. The report of each
must end with a ReportError or an OSError (a clear line on the command line), or with a whole page without a script; and
what a link leads to must be as it was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lightning_tspike import zoo
from lightning_tspike.analysis.html_report import ReportError, write_report
from lightning_tspike.callbacks import REPORT_SECTIONS

from .hostile import Source, run

METRICS, MEMBRANE, ENERGY, AMPLITUDE, FOLD = (
    "metrics.csv",
    "membrane.json",
    "energy.json",
    "amplitude_history.json",
    "checkpoints/best.folded/fold_report.json",
)
VICTIM = "not the run's"
NAMES = (
    r"$\frac{$", "$x$", r"\$", "$$", "_", "", " ", "a\0b", "\x1b[31m", "\u202e", "x" * 100_000, "<script>",
    "{{ 7 * 7 }}", "%s%n", "a/b/c/d/e", "../../x", "\ud800", "step", "epoch", "\U0001f600", "=cmd|' /C calc'!A0",
    "-->", "]]>",
)  # fmt: skip
NUMBERS = (
    "1e400", "-1e400", "nan", "inf", "1e308", "-1e308", "1e-320", "0", "", "hello", "9" * 400, "9" * 5000, "1_0",
    "0x10", "\u0661", "-0", "1e30", "1,5", "\0", "None",
)  # fmt: skip


def special(run: Path, rng: random.Random) -> None:
    """Something that is no file in the place of one of the run's, or of the report."""
    place = rng.choice(
        [METRICS, MEMBRANE, ENERGY, AMPLITUDE, FOLD, "report.html", ".report.html.partial", "events.out.tfevents.1"]
    )
    if place.startswith("events"):
        (run / METRICS).unlink()
    file = run / place
    file.unlink(missing_ok=True)
    kind = rng.choice(["pipe", "zero", "victim", "folder", "loop", "nowhere", "socket", "self", "proc"])
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            short = Path(tempfile.mkdtemp()) / "s"  # an address may have 100 characters
            end.bind(str(short))
            shutil.move(short, file)
            short.parent.rmdir()
    else:
        target = {
            "zero": "/dev/zero", "victim": run.parent / "victim", "loop": file, "nowhere": run.parent / "nowhere",
            "self": run, "proc": "/proc/self/environ",
        }[kind]  # fmt: skip
        file.symlink_to(target)


def names(run: Path, rng: random.Random) -> None:
    """Names of metrics and layers that mean something to TeX, HTML, XML, a terminal or a file system."""
    name = rng.choice(NAMES)
    tag = rng.choice(["train/{}", "val/{}", "amplitude/{}", "firing_rate/{}/positive", "{}"]).format(name)
    if rng.random() < 0.5:
        text = f'step,"{tag}","{name}"\n0,1,2\n10,2,3\n'
        (run / METRICS).write_text(text, encoding="utf-8", errors="surrogatepass")
        return
    file = run / rng.choice([MEMBRANE, ENERGY, AMPLITUDE, FOLD])
    file.write_text(file.read_text().replace('"act1"', json.dumps(name)))


def numbers(run: Path, rng: random.Random) -> None:
    """Steps and values that are no numbers, or none that an axis can show."""
    rows = [
        [rng.choice(NUMBERS) if rng.random() < 0.4 else str(k * rng.choice([1, -1])) for _ in range(4)]
        for k in range(9)
    ]
    header = "step,train/loss,val/loss,amplitude/act1"
    (run / METRICS).write_text("\n".join([header, *(",".join(row) for row in rows)]))


def size(run: Path, rng: random.Random) -> None:
    """More than a page, a picture or a memory can hold."""
    many = rng.choice([3_000, 30_000])
    tags = ",".join(f"{rng.choice(('train', 'amplitude', 'x'))}/{k}" for k in range(many))
    content: Callable[[], str] = rng.choice([
        lambda: f"step,{tags}\n" + ("1," * many + "1\n") * 9,
        lambda: _rates(many // 10),
        lambda: "step,train/loss\n" + "1," * 131_072,
        lambda: "step,train/loss\n1," + "1" * 200_000,
        lambda: 'step,train/loss\n1,"' + "1\n" * 2_000_000,
        lambda: "step,train/loss\n" + "1,1\n" * 3_000_000,
        lambda: "step,train/loss\n" + ",\n" * 8_000_000,
        lambda: "step" + ",train/loss" * 15_000 + "\n" + ("1" + ",1" * 15_000 + "\n") * 500,
        lambda: "step,train/loss\n" + ",".join(["1"] * 10_000_000),
        lambda: "," * 5_000_000,
        lambda: "\n" * 60_000_000,
        lambda: " " * 80_000_000,
    ])  # fmt: skip
    (run / METRICS).write_text(content())


def _rates(layers: int) -> str:
    kinds = ("firing_rate/{}/positive", "firing_rate/{}/negative", "entropy/{}/signed", "entropy/{}/unsigned")
    tags = [kind.format(f"act{k}") for k in range(layers) for kind in kinds]
    return "step," + ",".join(tags) + "\n" + "\n".join(f"{row}" + ",0.1" * len(tags) for row in range(9))


def text(run: Path, rng: random.Random) -> None:
    """JSON that is a bomb, or none."""
    file = run / rng.choice([MEMBRANE, ENERGY, AMPLITUDE, FOLD])
    whole = file.read_text()
    file.write_bytes(rng.choice([
        b"[" * 1_000_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b"9" * 1_000_000, b"null", b"[]", b"",
        b"\xff\xfe", b"[" + b"[]," * 2_000_000 + b"[]]", b" " * 20_000_000, b"NaN", whole.encode() + b"x",
        whole.encode()[:-9], whole.replace("0.", "1e400", 3).encode(), whole.replace("1", "1" * 400).encode(),
        whole.encode("utf-16"),
    ]))  # fmt: skip


def spoil(run: Path, rng: random.Random) -> None:
    """Something of another kind in a place of the JSON."""
    file = run / rng.choice([MEMBRANE, ENERGY, AMPLITUDE, FOLD])
    content = json.loads(file.read_text())
    node = content
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    thing: Any = rng.choice([
        None, True, -1, 10**400, 1e308, float("nan"), "", "text", "__import__('os')", [], {}, [[1]], {"a": {}},
        [0] * 100_000, list(range(50)), {str(k): {} for k in range(5_000)},
    ])  # fmt: skip
    if rng.random() < 0.2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = thing
    file.write_text(json.dumps(content))


def layers(run: Path, rng: random.Random) -> None:
    """A network with thousands of layers."""
    many = rng.choice([300, 3_000])
    file = run / rng.choice([MEMBRANE, ENERGY, FOLD])
    content = json.loads(file.read_text())
    if file.name == MEMBRANE:
        for side in content.values():
            side["layers"] = {f"act{k}": next(iter(side["layers"].values())) for k in range(many // 3)}
    else:
        key = "layers" if file.name == ENERGY else "neurons"
        content[key] = [{**content[key][0], "name": f"act{k}"} for k in range(many)]
    file.write_text(json.dumps(content))


def flip(run: Path, rng: random.Random) -> None:
    """Change bytes of a file."""
    file = run / rng.choice([METRICS, MEMBRANE, ENERGY, AMPLITUDE, FOLD])
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 5, 50])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    file.write_bytes(content)


def events(run: Path, rng: random.Random) -> None:
    """TensorBoard's files, damaged."""
    (run / METRICS).unlink()
    with SummaryWriter(str(run)) as writer:
        for step in range(5):
            writer.add_scalar(
                rng.choice(["train/loss", "amplitude/act1", *NAMES[:9]]), float(rng.choice(("1", "nan", "1e39"))), step
            )
    file = next(run.glob("events.out.tfevents.*"))
    content = bytearray(file.read_bytes())
    kind = rng.choice(["flip", "cut", "whole", "garbage", "length", "empty"])
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        content = content[: rng.randrange(len(content))]
    elif kind == "garbage":
        content = bytearray(rng.randbytes(1000))
    elif kind == "length":
        content[:8] = (2 ** rng.choice([31, 40, 62, 63])).to_bytes(8, "little")
    file.write_bytes(b"" if kind == "empty" else content)


KINDS = (special, names, numbers, size, text, spoil, layers, flip, events)


def report(run: Path) -> str:
    """Write the report of a run; gives the page.

    Raises:
        ReportError, OSError: It was refused.
        AssertionError: A file elsewhere was changed, or something is left behind.
    """
    place = run.parent
    before = {path.name for path in run.iterdir()}
    try:
        return write_report(run, sections=REPORT_SECTIONS).read_text(encoding="utf-8")
    finally:
        assert (place / "victim").read_text() == VICTIM, "a file elsewhere was changed"
        assert {path.name for path in place.iterdir()} == {"victim", "run"}, "a file elsewhere was made"
        left = {path.name for path in run.iterdir()} - before - {"report.html"}
        assert not left, f"{left} is left behind"


def made(scratch: Path) -> Path:
    """A run's folder as the digits recipe leaves it, beside a file that is not the run's."""
    (scratch / "victim").write_text(VICTIM)
    run = scratch / "run"
    shipped = Path(zoo.__file__).parent / "weights" / "tspike-digits"
    (run / FOLD).parent.mkdir(parents=True)
    shutil.copy(shipped / "fold_report.json", run / FOLD)
    shutil.copy(shipped / "training_log.csv", run / METRICS)
    histogram = {"counts": [1, 5, 1], "edges": [-3, -1, 1, 3], "fires": 0.3, "no_gradient": 0.1}
    look = {"step": 0, "layers": {"act1": histogram, "act2": histogram}}
    (run / MEMBRANE).write_text(json.dumps({"first": look, "last": {**look, "step": 20}}))
    layer = {"name": "act1", "macs": 10.0, "synops": 20.0, "ann_macs": 30.0}
    content = {"layers": [layer], "mac_picojoules": 4.6, "ac_picojoules": 0.9}
    (run / ENERGY).write_text(json.dumps(content))
    (run / AMPLITUDE).write_text(json.dumps({"steps": [-20, -10], "layers": {"act1": [1.0, 1.1]}}))
    return run


SOURCE = Source(
    "run folders",
    made,
    KINDS,
    report,
    lambda page: page.rstrip().endswith("</html>") and "<script" not in page,
    (ReportError, OSError),
    may_pass=KINDS,  # what cannot be drawn is left out
)

if __name__ == "__main__":
    sys.exit(run([SOURCE], *map(int, sys.argv[1:] or ["1000"])) > 0)
