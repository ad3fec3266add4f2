"""Whether the integer runtime decides as float32 does: every entry of the zoo whose weights are there.

    python -m benchmarks.integer_decisions [ENTRY=PATH ...] [--limit N] [--output FOLDER]

Reads the test set that ``tspike zoo verify`` measures an entry on, from the folder PATH that stands in the entry's
command (``tspike zoo info ENTRY``). tspike-digits needs none; other entries without a PATH are left out and named.

Compared are an entry's int8 weights computed in float32, and the same weights in the integer runtime: the share of test
samples that the two decide alike, and the accuracy of each beside that of the card. Measured as well is what
``zoo.load(ENTRY, runtime="integer")`` gives, which rounds the float32 weights itself. Results: integer_decisions.json
and .md.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_tspike import zoo
from lightning_tspike.analysis import evaluate
from lightning_tspike.cli.data import recipe_data
from lightning_tspike.inference.integer_network import integer, why_not

from .measuring import RESULTS, machine, table, write

ALIKE, POINTS = 0.999, 0.1
"""What must hold: the least share of samples decided alike, and how many points the accuracy may be from the card's."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integer_decisions")
    parser.add_argument("paths", nargs="*", metavar="ENTRY=PATH", help="folder with an entry's data")
    parser.add_argument("--limit", type=int, help="batches of each test set; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if (needed := why_not()) is not None:
        parser.error(f"this machine has no integer runtime: it needs {needed}")
    entries = zoo.list(status="trained")
    paths = dict(word.partition("=")[::2] for word in options.paths)
    if unknown := [name for name in paths if name not in entries]:
        parser.error(f"there is no trained entry {', '.join(unknown)}; there are {', '.join(entries)}")
    rows, left_out = [], []
    for name in entries:
        words = _recipe_and_words(name, paths.get(name))
        if words is None:
            left_out.append(name)
        else:
            rows.append(_measure(name, *words, limit=options.limit))
            print(rows[-1], flush=True)
    limit = [] if options.limit is None else [f"--limit {options.limit}"]
    results = {
        "command": " ".join(["python -m benchmarks.integer_decisions", *(f"{name}=PATH" for name in paths), *limit]),
        "machine": machine("cpu"),
        "rows": rows,
        "left out": left_out,
    }
    missing = f"Left out, as no PATH was given: {', '.join(left_out)}.\n" if left_out else ""
    markdown = f"# Decisions of the integer runtime\n\n`{results['command']}`\n\n{table(shown(rows))}\n{missing}"
    write(options.output, "integer_decisions", results, markdown)
    return results


def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in per cent, and whether they are what they must be."""
    return [
        {
            "entry": row["entry"],
            "samples": row["samples"],
            "decided alike": f"{row['alike']:.2%}",
            "int8 weights in float32": f"{row['accuracy, float32']:.2%}",
            "integer": f"{row['accuracy, integer']:.2%}",
            "the card's int8": f"{row['accuracy, card']:.2%}",
            "integer, of float32 weights": f"{row['accuracy, integer of float32 weights']:.2%}",
            "as it must be": "yes" if holds(row) else "no",
        }
        for row in rows
    ]


def holds(row: dict[str, Any]) -> bool:
    """Whether enough samples are decided alike, and the accuracy is the card's."""
    points = 100 * abs(row["accuracy, integer"] - row["accuracy, card"])
    return row["alike"] >= ALIKE and points <= POINTS + 1e-9  # of two floats


def _recipe_and_words(name: str, path: str | None) -> tuple[str, list[str]] | None:
    """The recipe and the options of its data, from the command that measured the entry; None where it lacks a path."""
    _, _, _, _, _, recipe, *words = shlex.split(zoo.info(name).measured_by or "")  # tspike zoo verify NAME --recipe R
    if path is None and any("=PATH" in word for word in words):
        return None
    return recipe, [word.replace("=PATH", f"={path}") for word in words]


def _measure(name: str, recipe: str, words: list[str], *, limit: int | None) -> dict[str, Any]:
    data = recipe_data(recipe, words)
    data.prepare_data()
    data.setup("test")
    rounded = zoo.load(name, precision="int8")
    networks = {
        "float32": rounded,
        "integer": integer(rounded),
        "integer of float32 weights": zoo.load(name, runtime="integer"),
    }
    found = {
        kind: evaluate(network, itertools.islice(data.test_dataloader(), limit), description=f"{name}: {kind}")
        for kind, network in networks.items()
    }
    alike = found["float32"].decisions == found["integer"].decisions
    return {
        "entry": name,
        "samples": len(alike),
        "alike": alike.double().mean().item(),
        "decided differently": int((~alike).sum()),
        **{f"accuracy, {kind}": evaluation.accuracy for kind, evaluation in found.items()},
        "accuracy, card": zoo.info(name).metrics["test/acc1/int8"],
    }


if __name__ == "__main__":
    main()
