"""The ImageNet recipe end to end on a sample of Tiny-ImageNet: two processes, killed, told to stop, finished."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_tspike import zoo
from lightning_tspike.training.option_checks import slow_precision

# what one would say on eight GPUs
COMMAND = [
    "fit", "--config", "resnet18_imagenet_modern", "--trainer.max_epochs=320", "--trainer.precision=bf16-mixed",
    "--trainer.logger+=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.project=tspike",
]  # fmt: skip
# what is another here: the machine, and limits
HERE = [
    "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.sync_batchnorm=false",
    "--trainer.logger.offline=true", "--model.num_classes=20", "--data.image_size=64", "--data.batch_size=4",
    "--data.num_workers=1", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=2",
    "--trainer.max_epochs=3",
]  # fmt: skip
if slow_precision("bf16-mixed", "cpu"):
    HERE.append("--trainer.precision=32-true")
RUN = Path("runs/resnet18_imagenet_modern/version_0")


@pytest.mark.slow
def test_killed_stopped_and_finished(tiny_imagenet: Path, tmp_path: Path) -> None:
    last = tmp_path / RUN / "checkpoints/last.ckpt"

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("tspike"), *COMMAND, f"--data.root={tiny_imagenet}", *HERE, *more],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"},
        )  # fmt: skip

    def strike(process: subprocess.Popen[str], when: Callable[[], bool], number: signal.Signals) -> str:
        end = time.monotonic() + 400
        while not when() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        try:
            return process.communicate(timeout=200)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    said = strike(process := start(), last.exists, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, said
    saved = torch.load(last, weights_only=True)
    assert saved["epoch"] == 0

    before = last.stat().st_mtime_ns
    said = strike(process := start("--ckpt_path=last"), lambda: last.stat().st_mtime_ns > before, signal.SIGTERM)
    assert process.returncode == 143, said
    assert f"checkpoint: {RUN}/checkpoints/last.ckpt" in said
    assert 6 < torch.load(last, weights_only=True)["global_step"] < 18

    said = start("--ckpt_path=last").communicate(timeout=400)[0]
    unfolded, folded = re.search(r"test accuracy: unfolded ([\d.]+) %, folded ([\d.]+) %", said).groups()
    assert abs(float(unfolded) - float(folded)) <= 100 / 16  # in float32 a spike may flip: one of 16 images
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 18
    assert saved["hyper_parameters"]["timesteps"] == 4
    assert "current_model_state" in saved  # beside the average, which is what is folded
    zoo.load(last.with_suffix(".folded"))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    names = {path.name for path in (tmp_path / RUN).iterdir()}
    assert names >= {"metrics.csv", "membrane.json", "energy.json", "amplitudes.png", "config.yaml"}
