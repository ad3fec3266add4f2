"""SIGTERM in a training: it ends with a checkpoint, and what goes on from there is the run that was never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lightning_tspike import TernarySNNModule
from lightning_tspike.callbacks import AveragedWeights, LastCheckpoint, TimestepSchedule
from lightning_tspike.data import ImageDataModule

TINY = {"backbone": "tspike_resnet_small", "num_classes": 4, "in_chans": 3, "timesteps": 2,
        "backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]}}  # fmt: skip
BATCHES = 10  # of an epoch: 84 images, of which 4 are for validation, in eights


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        x = random.integers(0, 256, (84, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.arange(84) % 4)
    return tmp_path


class Watched(TernarySNNModule):
    """Says what it has been trained on, and is told to stop."""

    def __init__(self, stop_in: Sequence[tuple[str, int]] = (), **options: Any) -> None:
        super().__init__(**options)
        self.stop_in, self.seen = stop_in, [[]]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen[-1].append((self.network.timesteps, round(float(batch[0].sum()), 3)))
        self._stop("step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: object, batch_idx: int) -> None:
        self._stop("validation")
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.seen.append([])

    def _stop(self, where: str) -> None:
        steps = self.trainer.global_step
        if (where, steps) in self.stop_in and not self.trainer.sanity_checking:
            self.stop_in = ()
            os.kill(os.getpid(), signal.SIGTERM)


def fit(
    folder: Path,
    images: Path,
    stop_in: Sequence[tuple[str, int]] = (),
    resume: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
    data: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Watched, dict[str, Any]]:
    """Train two epochs; gives the module and its last checkpoint."""
    L.seed_everything(5, verbose=False)
    torch.rand(17 if resume else 2)  # other random numbers were drawn before
    module = Watched(stop_in, **TINY, opt="sgd", lr=0.05, warmup_epochs=1, amplitude="channel")
    module.network.model.fc = nn.Sequential(nn.Dropout(0.5), module.network.model.fc)
    loading: dict[str, Any] = {"batch_size": 8, "val_images": 4, "num_workers": 0}
    trainer = L.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2, callbacks=[*callbacks, LastCheckpoint(folder)], **options,
    )  # fmt: skip
    source = ImageDataModule("npz", str(images), crop_padding=2, cutout=2, **loading | (data or {}))
    before = signal.getsignal(signal.SIGTERM)
    if stop_in:
        with pytest.raises(SIGTERMException):
            trainer.fit(module, source, ckpt_path=resume)
    else:
        trainer.fit(module, source, ckpt_path=resume)
    assert signal.getsignal(signal.SIGTERM) == before
    return module, torch.load(folder / "last.ckpt", weights_only=True)


def seen_in(*modules: Watched) -> list[tuple[int, float]]:
    """T and images of every training batch, of runs that go on from each other."""
    return [batch for module in modules for epoch in module.seen for batch in epoch]


def check_goes_on(
    folder: Path,
    images: Path,
    stop_in: tuple[str, int],
    saved_at: int,
    callbacks: Callable[[], list[L.Callback]] = list,
    **options: Any,
) -> None:
    """A run that is stopped and goes on sees what one that was never stopped sees, and ends as that does."""
    whole, expected = fit(folder / "whole", images, callbacks=callbacks(), **options)
    first, saved = fit(folder / "part", images, [stop_in], callbacks=callbacks(), **options)
    assert saved["global_step"] == saved_at
    second, found = fit(folder / "part", images, resume=folder / "part/last.ckpt", callbacks=callbacks(), **options)
    assert len(seen_in(whole)) == 2 * BATCHES
    assert seen_in(first, second) == seen_in(whole)
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    for key in ("lr_schedulers", "global_step", "epoch"):
        assert found[key] == expected[key]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop_in", [("step", 3), ("step", 14), ("step", BATCHES - 2)])
def test_in_the_middle_of_an_epoch(tmp_path: Path, images: Path, stop_in: tuple[str, int], num_workers: int) -> None:
    """Bit for bit: order, augmentation and mixing of the images, dropout, time steps, weights, momentum, schedule."""
    data = {"num_workers": num_workers, "mixup": 0.5, "cutmix": 0.5}
    schedule = lambda: [TimestepSchedule(first=1, share=0.5)]  # noqa: E731
    check_goes_on(tmp_path, images, stop_in, stop_in[1] + 1, schedule, data=data)


@pytest.mark.parametrize("stop_in", [("step", BATCHES - 1), ("validation", BATCHES), ("validation", 2 * BATCHES)])
def test_at_the_end_of_an_epoch(tmp_path: Path, images: Path, stop_in: tuple[str, int]) -> None:
    """After its last step or in its validation: that is brought to its end first, and so is a run's last one."""
    check_goes_on(tmp_path, images, stop_in, max(stop_in[1], BATCHES))


def test_with_an_average_of_the_weights(tmp_path: Path, images: Path) -> None:
    check_goes_on(tmp_path, images, ("step", 4), 5, lambda: [AveragedWeights(decay=0.9, norm_batches=2)])


def test_with_accumulated_gradients(tmp_path: Path, images: Path) -> None:
    """These are in no checkpoint: the run goes on to the step that they are for."""
    check_goes_on(tmp_path, images, ("step", 1), 2, accumulate_grad_batches=3)


def test_with_validation_within_epochs(tmp_path: Path, images: Path) -> None:
    """Loaders of validation draw random numbers."""
    check_goes_on(tmp_path, images, ("step", 6), 7, val_check_interval=3)


def test_another_batch_size_is_refused(tmp_path: Path, images: Path) -> None:
    fit(tmp_path / "part", images, [("step", 3)])
    with pytest.raises(ValueError, match="in the middle of an epoch of 10 batches, and here an epoch has 20: go on"):
        fit(tmp_path / "part", images, resume=tmp_path / "part/last.ckpt", data={"batch_size": 4})


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """A signal to the second of them stops both where they are; they go on as if it had not come (DDP by gloo)."""
    words = [
        Path(sys.executable).with_name("tspike"), "fit", "--config", "digits", "--model.timesteps=1",
        "--model.backbone_kwargs={layers: [1, 1], widths: [4, 8]}", "--data.batch_size=8", "--trainer.accelerator=cpu",
        "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = tmp_path / "runs/digits/version_0"

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*words, *more], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    with start() as process:
        try:
            while process.poll() is None and not (run / "metrics.csv").exists():  # written after 100 steps
                time.sleep(0.01)
            pids = [
                process.pid,
                *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()),
            ]
            os.kill(pids[1], signal.SIGTERM)
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 143, printed
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.1)
    step = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step % 90, "in the middle of an epoch"  # of 1,437 images
    assert "checkpoint: runs/digits/version_0/checkpoints/last.ckpt" in printed

    for more in (["--ckpt_path=last"], []):  # on, and once without a stop
        with start(*more) as process:
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    ends = [torch.load(run.with_name(f"version_{i}") / "checkpoints/last.ckpt", weights_only=True) for i in range(2)]
    assert ends[0]["global_step"] == ends[1]["global_step"] > step
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=0, atol=0)
