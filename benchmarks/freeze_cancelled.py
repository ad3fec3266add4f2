"""Does it cost accuracy to freeze the amplitudes that batch norm cancels? Train the digits with and without.

    python -m benchmarks.freeze_cancelled [SEEDS]

Runs the recipe `digits` for each seed with --model.freeze_cancelled=true and =false, in turn, and writes the test
accuracy of the folded networks, how far live and cancelled amplitudes got from 1, and the time of each run to
benchmarks/results/freeze_cancelled.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightning_tspike.store.checkpoint import read_checkpoint

RESULTS = Path(__file__).parent / "results" / "freeze_cancelled.json"


def main(seeds: int) -> None:
    """Train with and without for each of so many seeds, and write the results."""
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for freeze in (True, False):
            runs.append({"seed": seed, "freeze_cancelled": freeze, **_run(seed, freeze)})
            print(runs[-1], flush=True)
    summary = {
        f"freeze_cancelled={str(freeze).lower()}": {
            "mean accuracy": statistics.mean(r["accuracy"] for r in runs if r["freeze_cancelled"] == freeze),
            "standard deviation": statistics.stdev(r["accuracy"] for r in runs if r["freeze_cancelled"] == freeze),
        }
        for freeze in (True, False)
    }
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "summary": summary, "runs": runs}, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def _run(seed: int, freeze: bool) -> dict[str, Any]:
    command = [
        *(sys.executable, "-c", "from lightning_tspike.cli.main import main; main()", "fit", "--config", "digits"),
        *(f"--seed_everything={seed}", f"--model.freeze_cancelled={str(freeze).lower()}"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=os.environ)
        seconds = time.perf_counter() - start
        network = read_checkpoint(next(Path(folder).rglob("best.ckpt"))).network
    effects = {n.name: n.effect for n in network.report().neurons}
    moved = {
        effect: max(
            (abs(neuron.raw_amplitude.item() - 1) for name, neuron in network.neurons().items()
             if effects[name] == effect and neuron.raw_amplitude is not None),
            default=0.0,
        )
        for effect in ("live", "cancelled")
    }  # fmt: skip
    accuracy = float(re.search(r"folded ([\d.]+) %", result.stdout.split("unfolded")[1])[1]) / 100  # type: ignore[index]
    return {"accuracy": accuracy, "moved": moved, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
