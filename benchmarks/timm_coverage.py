"""Try the models of timm and torchvision: ternarize each, fold it, and record the result.

    python -m benchmarks.timm_coverage                 # hours on two cores; goes on where it was stopped
    python -m benchmarks.timm_coverage 'resnet*'       # only these
    python -m benchmarks.timm_coverage 'torchvision/*' # only torchvision's

Of timm those whose activations are all ReLU modules, of torchvision all that classify images, the smallest first.

Weights, batch-norm statistics and amplitudes are random, in float64; nothing is downloaded. Each model is folded once
with one amplitude per layer and once with one per channel, and the fold verifies itself on two images of noise. Results
are appended to benchmarks/results/timm_coverage.jsonl; docs/timm.md is written from them.
"""

from __future__ import annotations

import fnmatch
import platform
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from lightning_tspike.folding import fold
from lightning_tspike.graph.activations import is_activation
from lightning_tspike.network import SpikingNetwork, ternarize

from . import measuring

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "timm_coverage.jsonl"
PAGE = ROOT / "docs" / "timm.md"
LARGEST = 250_000_000  # parameters: float64, three copies and the gradients' buffers must fit into the memory
SECONDS = 240  # of processor time, for one model
TIMESTEPS = 2
TORCHVISION = "torchvision/"  # a model's name begins with it


def main(patterns: list[str]) -> None:
    """Try the models that match and are not in the results yet, then write the page."""
    done = {record["name"] for record in measuring.records(RESULTS)}
    names = [n for n in timm.list_models() if not n.startswith("tspike_")] + _torchvisions()
    names = [n for n in names if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]
    warnings.simplefilter("ignore")
    for i, name in enumerate(names):
        if name in done:
            continue
        record = _try(name)
        measuring.add_record(RESULTS, record)
        print(f"{i + 1}/{len(names)} {name}: {record['status']}", flush=True)
    write_page()


def _try(name: str) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name}
    start = time.perf_counter()
    try:
        with _time_limit(SECONDS):
            with torch.device("cpu" if name.startswith(TORCHVISION) else "meta"):  # RegNet reads numbers it has made
                outline = _create(name)
            record["parameters"] = sum(p.numel() for p in outline.parameters())
            kinds = {type(m) for m in outline.modules() if is_activation(m)}
            if kinds != {nn.ReLU} and not name.startswith(TORCHVISION):
                return record | {"status": "other activations", "why": ", ".join(sorted(k.__name__ for k in kinds))}
            if record["parameters"] > LARGEST:
                return record | {"status": "not tried", "why": f"more than {LARGEST:,} parameters"}
            del outline
            for amplitude in ("layer", "channel"):
                record[amplitude] = _fold(name, amplitude)
    except Exception as error:
        reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        return record | {"status": "refused", "why": reason[:300]}
    kept = record["layer"]["kept"]
    record["status"] = "folded partly" if kept or record["channel"]["kept"] else "folded fully"
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def _create(name: str) -> nn.Module:
    if name.startswith(TORCHVISION):
        return torchvision.models.get_model(name.removeprefix(TORCHVISION), weights=None)
    return timm.create_model(name)


def _torchvisions() -> list[str]:
    """Torchvision's image classifiers, the smallest first."""
    names = torchvision.models.list_models(module=torchvision.models)
    sizes = {name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for name in names}
    return [TORCHVISION + name for name in sorted(names, key=sizes.__getitem__)]


def _fold(name: str, amplitude: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = _create(name).eval()
    network = randomize(ternarize(model, TIMESTEPS, amplitude=amplitude, freeze_cancelled=False))
    _, height, width = network.input_size
    for size in dict.fromkeys([(min(64, height), min(64, width)), (height, width)]):
        try:
            example = torch.randn(2, network.input_size[0], *size, dtype=torch.float64)
            with torch.no_grad():
                network(example[:1])
            break
        except Exception:  # a model for one image size
            if size == (height, width):
                raise
    _, report = fold(network, example)
    return {
        "neurons": len(report.neurons),
        "kept": report.kept,
        "deviation": report.deviation,
        "addition_only": report.addition_only,
        "addition_only_macs": report.addition_only_macs,
        "silent": len(report.silent),
        "cancelled": sum(neuron.effect == "cancelled" for neuron in report.neurons),
        "size": list(size),
        "functions": len(report.functions),
    }


def randomize(network: SpikingNetwork) -> SpikingNetwork:
    """Random amplitudes in [0.5, 1.5], batch-norm statistics and weights of unit gain; float64, eval mode."""
    network = network.double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.ndim > 1:
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    for neuron in network.neurons().values():
        if neuron.raw_amplitude is not None:
            nn.init.uniform_(neuron.raw_amplitude, 0.5, 1.5, generator=generator)
    return network


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def write_page() -> None:
    """Write docs/timm.md from the results."""
    of_torchvision = {r["name"]: r for r in measuring.records(RESULTS) if r["name"].startswith(TORCHVISION)}
    of_timm = [r for r in measuring.records(RESULTS) if r["name"] not in of_torchvision]
    records = sorted((r for r in of_timm if r["status"] != "other activations"), key=lambda r: r["name"])
    others = len(of_timm) - len(records)
    tried = [r for r in records if "channel" in r]
    full = {kind: sum(not r[kind]["kept"] for r in tried) for kind in ("layer", "channel")}
    left = _left(records)
    missing = {"status": "not tried", "why": "no time yet"}
    torchvisions = [of_torchvision.get(name, {"name": name} | missing) for name in sorted(_torchvisions())]
    tv_tried, tv_left = [r for r in torchvisions if "channel" in r], _left(torchvisions)
    tv_full = {kind: sum(not r[kind]["kept"] for r in tv_tried) for kind in ("layer", "channel")}
    versions = f"timm {timm.__version__}, torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU"
    lines = [
        "# Models of timm and torchvision",
        "",
        "## timm models whose activations are ReLU modules",
        "",
        f"Written by `python -m benchmarks.timm_coverage` ({versions}), from "
        f"`benchmarks/results/timm_coverage.jsonl`. Each of the {len(records)} models is built with random weights, "
        f"ternarized with T = {TIMESTEPS}, given random amplitudes in [0.5, 1.5] and random batch-norm statistics, and "
        "folded in float64, once with one amplitude per layer and once with one per channel. "
        f"timm's other {others} models also have other activations and were not tried.",
        "",
        f"Of {len(records)}, {full['layer']} fold fully with one amplitude per layer and {full['channel']} with one "
        f"per channel, the others of {len(tried)} partly; {left['refused']} refused, {left['not tried']} not tried.",
        "",
        "*Neurons*: neuron layers. *Folded*: those whose amplitude vanished, per layer / per channel. *Deviation*: the "
        "greater one of the folded from the unfolded logits, relative to the greatest logit. *Additions only*: share "
        "of the weighted layers, and of their multiply-accumulate operations, whose input was integer on the images of "
        "noise.",
        "",
        *_table(records),
        "",
        "## torchvision's image classifiers",
        "",
        f"The same for all {len(torchvisions)} of torchvision {torchvision.__version__.split('+')[0]}, whatever their "
        "activations. Where a module calls an activation as a function (GoogLeNet, Inception), it is turned into a "
        "module. A residual block has one ReLU for two places, which become one layer of neurons.",
        "",
        f"Of {len(torchvisions)}, {tv_full['layer']} fold fully with one amplitude per layer and {tv_full['channel']} "
        f"with one per channel, the others of {len(tv_tried)} partly; {tv_left['refused']} refused, "
        f"{tv_left['not tried']} not tried.",
        "",
        *_table(torchvisions),
    ]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")


def _left(records: list[dict[str, Any]]) -> dict[str, int]:
    return {status: sum(r["status"] == status for r in records) for status in ("refused", "not tried")}


def _table(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | neurons | folded | deviation | additions only: layers, operations | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        name = r["name"].removeprefix(TORCHVISION)
        if "layer" not in r or "channel" not in r:
            lines.append(f"| {name} | | | | | {r['status']}: {_escaped(r['why'])} |")
            continue
        layer, channel = r["layer"], r["channel"]
        folded = " / ".join(str(k["neurons"] - len(k["kept"])) for k in (layer, channel))
        shares = f"{100 * layer['addition_only']:.0f} %, {100 * layer['addition_only_macs']:.0f} %"
        deviation = max(layer["deviation"], channel["deviation"])
        kept, where = (layer["kept"], "kept") if layer["kept"] else (channel["kept"], "kept per channel")
        note = f"{where}: {', '.join(kept[:3])}{', …' if len(kept) > 3 else ''}" if kept else ""
        if layer.get("functions"):
            note += f"{'; ' if note else ''}{layer['functions']} activations stay functions"
        lines.append(f"| {name} | {layer['neurons']} | {folded} | {deviation:.0e} | {shares} | {note} |")
    return lines


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main(sys.argv[1:])
