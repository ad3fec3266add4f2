"""What do the callbacks cost? Training steps with all of them, with their defaults, and without any, in turn.

    python -m benchmarks.callback_overhead [STEPS] [PAIRS]

Networks of three sizes on random images, batch 64, T = 4, on the CPU, CSVLogger in both; STEPS (200) optimizer steps a
run, after 25 that are not counted, all in one epoch. The ratio of each pair, and their median, go to
benchmarks/results/callback_overhead.json. FoldExport and EnergyMonitor work when a checkpoint is saved and when the run
ends, outside of steps: how long they take is written beside.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_tspike import TernarySNNModule
from lightning_tspike.callbacks import (
    AmplitudeLogger,
    EnergyMonitor,
    FiringRateMonitor,
    FoldExport,
    MembraneHistogram,
)

RESULTS = Path(__file__).parent / "results" / "callback_overhead.json"
UNCOUNTED = 25
NETWORKS = {
    "tspike_resnet_small, 8x8": {"backbone": "tspike_resnet_small", "in_chans": 1, "size": 8},
    "tspike_resnet_small, 28x28": {"backbone": "tspike_resnet_small", "in_chans": 1, "size": 28},
    "tspike_resnet18, 32x32": {"backbone": "tspike_resnet18", "in_chans": 3, "size": 32},
}


class _Clock(L.Callback):
    """Seconds per step, and seconds from the last step to the end of everything."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == UNCOUNTED:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.stop, self.steps = time.perf_counter(), trainer.global_step - UNCOUNTED


def main(steps: int = 200, pairs: int = 5) -> None:
    """Measure all networks and write the results."""
    rows = []
    for name, settings in NETWORKS.items():
        runs = [(_run(steps, watched=True, **settings), _run(steps, watched=False, **settings)) for _ in range(pairs)]
        ratios = sorted(watched["per_step"] / alone["per_step"] for watched, alone in runs)
        rows.append(
            {
                "network": name,
                "seconds per step, none": statistics.median(alone["per_step"] for _, alone in runs),
                "ratios": [round(ratio, 4) for ratio in ratios],
                "median ratio": statistics.median(ratios),
                "seconds at the end": statistics.median(w["end"] - a["end"] for w, a in runs),
            }
        )
        print(rows[-1], flush=True)
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.write_text(json.dumps({"machine": machine, "steps": steps, "rows": rows}, indent=2) + "\n")


def _run(steps: int, *, watched: bool, backbone: str, in_chans: int, size: int) -> dict[str, float]:
    L.seed_everything(1, verbose=False)
    module = TernarySNNModule(backbone, 10, 4, in_chans, sched="none")
    data = TensorDataset(torch.randn(640, in_chans, size, size), torch.randint(10, (640,)))
    sampler = RandomSampler(data, replacement=True, num_samples=64 * (UNCOUNTED + steps))
    clock = _Clock()
    callbacks: list[L.Callback] = [clock]  # first: its times hold what the others do at the start and the end of a step
    if watched:
        callbacks += [AmplitudeLogger(), MembraneHistogram(), FiringRateMonitor(), EnergyMonitor(), FoldExport()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=CSVLogger(folder), limit_val_batches=0,
            callbacks=[*callbacks, ModelCheckpoint()], enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=64, sampler=sampler))
        end = time.perf_counter() - clock.stop
    return {"per_step": (clock.stop - clock.start) / clock.steps, "end": end}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
