"""What benchmarks/inference.py has measured, as Markdown: its own page, and the section of docs/speed.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measuring import listing, table

DOCS = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
BEGIN, END = "<!-- python -m benchmarks.inference --docs -->\n", "<!-- end -->"

TIME = {(1, 1): 0.40, (1, 2): 0.60, (1, 4): 1.0, (8, 1): 0.40, (8, 2): 0.65, (8, 4): 1.25}
"""By batch and T: the integer runtime's time over the ANN's is to be at most this."""
JELLY, WEIGHTS, PEAK = 4.0, 0.25, 0.5
"""SpikingJelly's time over the integer runtime's, at least; its weights and peak over those in float32, at most."""

Row = Mapping[str, Any]


def report(results: Mapping[str, Any]) -> str:
    """The page of results."""
    facts = listing({"network": results["network"], "image": results["image"], **results["machine"]})
    parts = [f"# Inference\n\n`{results['command']}`\n\n{facts}\n", section(results)]
    if "speed" in results:
        parts.append(f"## All times\n\n{table(results['speed'])}")
    rates = [{"layer": layer, "firing rate": rate} for layer, rate in results["firing rates"].items()]
    parts.append(f"## Firing rates\n\n{table(rates)}")
    return "\n".join(parts)


def write_docs(results: Mapping[str, Any], page: Path = DOCS) -> None:
    """Put the section into a page, between two comments.

    Raises:
        ValueError: The page has not these comments.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} must have the lines {BEGIN.strip()} and {END}, between which the section goes")
    page.write_text(before + BEGIN + section(results) + END + after)


def section(results: Mapping[str, Any]) -> str:
    """What docs/speed.md says of inference."""
    where = results["machine"]
    channels, height, width = results["image"]
    weights = results["weights"]
    parts = [
        f"`{results['command']}`: {results['network']}, {channels}x{height}x{width}, {where['threads']} threads, "
        f"{where['processor']} with {where['vector instructions']}, torch {where['torch']}. The folded network fires "
        f"at a mean rate of {results['firing rates']['mean']:.2f}.\n"
    ]
    if speed := results.get("speed"):
        parts += [
            "Time of the ternary network relative to the fastest float32 form of timm's ANN, median over rounds in "
            "which all take turns:\n",
            table(_ternary_rows(speed)),
            "The ANN, float32 unless it says int8:\n",
            table(_ann_rows(speed)),
        ]
    if memory := results.get("memory"):
        parts += [
            f"Memory at T = {max(results['timesteps'])}, in a process of its own each: what is held for the network, "
            "and the peak of a forward pass above that:\n",
            table([{key: _two(value) for key, value in row.items()} for row in memory]),
        ]
    if weights["integer"]:
        kept = ", ".join(weights["in float32"]) or "none"
        parts.append(
            f"Weights: {weights['integer']:,} bytes on integers, {weights['float32']:,} in float32; layers that stay "
            f"in float32: {kept}.\n"
        )
    if goals := goals_of(results):
        parts += ["What was to be reached with the integer runtime:\n", table(goals)]
    if engines := results.get("engines"):
        parts += [
            f"Engines for the convolutions of spikes, {engines['batch x T']} images and time steps together; oneDNN's "
            f"int8 differs from the rounded weights in float32 by {engines['oneDNN int8 differs by']:.1g} of the "
            "largest value, QLinearConv rounds its result to 8 bits, ConvInteger's is still to be scaled:\n",
            table([{key: _two(value) for key, value in row.items()} for row in engines["rows"]]),
        ]
    return "\n".join(parts)


def goals_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached by ResNet-18 on 224x224 pixels, as rows; those that were not measured are left out."""
    if (results["network"], results["image"]) != ("resnet18", [3, 224, 224]):
        return []
    speed: Sequence[Row] = results.get("speed", ())
    found: list[tuple[str, float, float, bool]] = []  # what, measured, bound, whether that is the least
    for (batch, timesteps), most in TIME.items():
        for row in _find(speed, batch, timesteps, "integer"):
            found.append((f"time / ANN, batch {batch}, T = {timesteps}", row["time / ANN"], most, False))
    for rival in (row for row in speed if row["network"] == "SpikingJelly"):
        for row in _find(speed, rival["batch"], rival["T"], "integer"):
            times = rival["median, ms"] / row["median, ms"]
            found.append((f"SpikingJelly / time, batch {row['batch']}, T = {row['T']}", times, JELLY, True))
    weights = results["weights"]
    if weights["integer"]:
        found.append(("weights / float32", weights["integer"] / weights["float32"], WEIGHTS, False))
    memory: Sequence[Row] = results.get("memory", ())
    for row in (row for row in memory if row["runtime"] == "integer"):
        floats = [r for r in memory if r["batch"] == row["batch"] and r["runtime"] in ("eager", "channels last")]
        peak = "peak of a forward pass, MiB"
        share = row[peak] / min(r[peak] for r in floats)
        found.append((f"peak of a forward pass / float32, batch {row['batch']}", share, PEAK, False))
    return [
        {
            "what": what,
            "measured": f"{measured:.2f}",
            "to be": f"{'at least' if is_least else 'at most'} {bound:.2f}",
            "reached": "yes" if (round(measured, 2) >= bound if is_least else round(measured, 2) <= bound) else "no",
        }
        for what, measured, bound, is_least in found
    ]


def _find(speed: Sequence[Row], batch: int, timesteps: int, runtime: str) -> list[Row]:
    wanted = (batch, timesteps, "ternary", runtime)
    return [row for row in speed if (row["batch"], row["T"], row["network"], row["runtime"]) == wanted]


def _ternary_rows(speed: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each runtime of spiking networks, a column for each batch and T."""
    spiking = [row for row in speed if row["T"] is not None]
    columns = list(dict.fromkeys((row["batch"], row["T"]) for row in spiking))
    cells = {(row["network"], row["runtime"], row["batch"], row["T"]): row["time / ANN"] for row in spiking}
    names = {(row["network"], row["runtime"]): row["runtime"] if row["network"] == "ternary" else row["network"]
             for row in spiking}  # fmt: skip
    return [
        {"runtime": name, **{f"batch {b}, T = {t}": _two(cells.get((*key, b, t))) for b, t in columns}}
        for key, name in names.items()
    ]


def _ann_rows(speed: Sequence[Row]) -> list[dict[str, Any]]:
    ann = [row for row in speed if row["network"] == "ANN"]
    rows: dict[str, dict[str, Any]] = {}
    for row in ann:
        batch = row["batch"]
        cells = {f"batch {batch}, ms": f"{row['median, ms']:.1f}", f"batch {batch}, relative": _two(row["time / ANN"])}
        rows.setdefault(row["runtime"], {"runtime": row["runtime"]}).update(cells)
    return list(rows.values())


def _two(value: Any) -> Any:
    return f"{value:.2f}" if isinstance(value, float) else value
