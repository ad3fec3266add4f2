"""How long it takes to start: imports, and the first call of a neuron, in fresh processes, side by side.

    python -m benchmarks.import_time [--rounds 5] [--output FOLDER]

Imports are timed inside the new process, without the start of Python. The first call of a neuron is measured with an
empty cache of compiled kernels, and with the cache that this leaves. Medians in seconds; import_time.json and .md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .measuring import RESULTS, machine, table, write

IMPORTS = {
    "torch": "import torch",
    "lightning": "import lightning",
    "timm": "import timm",
    "lightning_tspike": "import lightning_tspike",
    "lightning_tspike.functional": "from lightning_tspike import functional",
    "lightning_tspike.TernarySNNModule": "from lightning_tspike import TernarySNNModule",
    "lightning_tspike.zoo": "from lightning_tspike import zoo; zoo.list()",
    "spikingjelly": "from spikingjelly.activation_based import neuron",
    "snntorch": "import snntorch",
    "norse": "import norse.torch",
}
BEFORE_CALL = "from lightning_tspike.functional import ternary_lif; import torch; x = torch.zeros(4, 8)"
FIRST_CALL = "ternary_lif(x, 4)"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    imports = {name: code for name, code in IMPORTS.items() if find_spec(name.partition(".")[0])}
    times: dict[str, list[float]] = {name: [] for name in imports}
    first: dict[str, list[float]] = {"first call, nothing compiled yet": [], "first call, compiled before": []}
    for _ in range(options.rounds):
        for name, code in imports.items():
            times[name].append(_run("", code, os.environ))
        with tempfile.TemporaryDirectory() as cache:
            for calls in first.values():
                calls.append(_run(BEFORE_CALL, FIRST_CALL, {**os.environ, "XDG_CACHE_HOME": cache}))
    rows = [
        {"what": name, "seconds": statistics.median(own), "fastest": min(own), "slowest": max(own)}
        for name, own in (times | first).items()
    ]
    results = {"command": "python -m benchmarks.import_time", "machine": machine("cpu"), "rows": rows}
    print(table(rows))
    write(options.output, "import_time", results, f"# Time to start\n\n`{results['command']}`\n\n{table(rows)}")
    return results


def _run(prepare: str, code: str, environment: Any) -> float:
    script = f"import time\n{prepare}\nstart = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


if __name__ == "__main__":
    main()
