"""Learning rates: the module's schedules under every limit of a trainer, and Lightning's and torch's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging, Timer
from lightning.pytorch.tuner import Tuner
from torch import optim
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tspike import TernarySNNModule

TINY = {
    "backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2,
    "backbone_kwargs": {"layers": [1], "widths": [4]},
}  # fmt: skip


class Watch(L.Callback):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def data(batches: int = 4) -> DataLoader[Any]:
    x = torch.randn(4 * batches, 1, 8, 8)
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % 10), batch_size=4)


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)


def learning_rates(folder: Path, module: L.LightningModule, *callbacks: L.Callback, **options: object) -> list[float]:
    watch = Watch()
    trainer(folder, watch, *callbacks, **options).fit(module, data())
    return watch.seen


def cosine(peak: float, passed: float) -> float:
    return peak * (1 + math.cos(math.pi * passed)) / 2


class OneCycle(TernarySNNModule):
    def configure_optimizers(self) -> Any:
        optimizer = optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class Plateau(TernarySNNModule):
    def configure_optimizers(self) -> Any:
        optimizer = optim.SGD(self.parameters(), lr=0.1)
        watching = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": watching, "monitor": "train/acc1"}}


def test_schedules_of_torch_in_a_subclass(tmp_path: Path) -> None:
    reference = optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cycle = optim.lr_scheduler.OneCycleLR(reference, max_lr=0.4, total_steps=8)
    expected = []
    for _ in range(8):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        cycle.step()
    assert learning_rates(tmp_path, OneCycle(**TINY), max_epochs=2) == pytest.approx(expected)
    by_epoch = learning_rates(tmp_path, Plateau(**TINY), max_epochs=3)[::4]
    assert by_epoch == pytest.approx([0.1, 0.05, 0.025])  # no epoch is better by the threshold


def test_averaged_weights(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY, lr=0.1)
    averaging = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=1)
    seen = learning_rates(tmp_path, module, averaging, max_epochs=4)[::4]
    assert seen[:2] == pytest.approx([0.1, cosine(0.1, 1 / 4)])
    assert seen[-1] == pytest.approx(0.02)
    assert all(p.isfinite().all() for p in module.parameters())


def test_learning_rate_finder(tmp_path: Path) -> None:
    """What is found is the peak of the schedule, and the weights are those from before the trial."""
    finder = LearningRateFinder(min_lr=1e-3, max_lr=0.5, num_training_steps=20, early_stop_threshold=None)
    module = TernarySNNModule(**TINY, lr=7.0)
    seen = learning_rates(tmp_path, module, finder, max_epochs=4)
    found = module.hparams["lr"]
    assert found == finder.optimal_lr.suggestion()
    assert 1e-3 < found < 0.5
    assert seen[::4] == pytest.approx([cosine(found, epoch / 4) for epoch in range(4)])


def test_a_tuner_leaves_the_calibrated_start_to_the_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "ann.pt"
    ann = timm.create_model("tspike_resnet_small", num_classes=10, in_chans=1, layers=[1], widths=[4]).state_dict()
    torch.save(ann, weights)
    module = TernarySNNModule(**TINY, pretrained=str(weights), calibration_images=8)
    options: dict[str, Any] = {"num_training": 3, "min_lr": 1e-4, "max_lr": 1e-3, "update_attr": False}
    Tuner(trainer(tmp_path, max_epochs=1)).lr_find(module, data(), **options)
    conv = "network.model.conv1.weight"
    assert torch.equal(module.state_dict()[conv], ann["conv1.weight"])
    with caplog.at_level("INFO"):
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(module, data())
    assert "Calibrated on 8 training images" in caplog.text


def test_steps_alone_limit_the_training(tmp_path: Path) -> None:
    seen = learning_rates(tmp_path, TernarySNNModule(**TINY, lr=0.1), max_steps=6)
    assert seen == pytest.approx([cosine(0.1, step / 6) for step in range(6)])
    warm = learning_rates(tmp_path, TernarySNNModule(**TINY, lr=0.1, warmup_epochs=1), max_steps=8)
    assert warm[:4] == pytest.approx([1e-5 + (0.1 - 1e-5) * step / 4 for step in range(4)])
    assert warm[4:] == pytest.approx([cosine(0.1, step / 8) for step in range(4, 8)])
    # an optimizer step for every two batches
    module = TernarySNNModule(**TINY, lr=0.1, warmup_epochs=1)
    accumulated = learning_rates(tmp_path, module, max_steps=4, accumulate_grad_batches=2)
    assert accumulated[::2] == pytest.approx([1e-5, (0.1 + 1e-5) / 2, cosine(0.1, 2 / 4), cosine(0.1, 3 / 4)])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.randn(1, 8, 8), 3


def test_steps_alone_limit_the_training_on_a_stream(tmp_path: Path) -> None:
    watch, stream = Watch(), DataLoader(Stream(), batch_size=2)
    trainer(tmp_path, watch, max_steps=3).fit(TernarySNNModule(**TINY, lr=0.1), stream)
    assert watch.seen == pytest.approx([cosine(0.1, step / 3) for step in range(3)])
    with pytest.raises(ValueError, match="warmup_epochs=2 .* loader has no length.* limit_train_batches"):
        trainer(tmp_path, max_steps=3).fit(TernarySNNModule(**TINY, warmup_epochs=2), stream)


def test_a_run_by_steps_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    first, second, file = Watch(), Watch(), tmp_path / "half.ckpt"
    trainer(tmp_path, first, _Save(file, step=4), max_steps=8).fit(TernarySNNModule(**TINY, lr=0.1), data())
    trainer(tmp_path, second, max_steps=8).fit(TernarySNNModule(**TINY, lr=0.1), data(), ckpt_path=file)
    assert second.seen == pytest.approx(first.seen[4:])


class _Save(L.Callback):
    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step

    def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


class _StepClock(Timer):
    """A timer whose clock makes a second of every step."""

    def on_fit_start(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        self.trainer = trainer
        super().on_fit_start(trainer, *arguments, **more)

    def time_elapsed(self, stage: str = "train") -> float:
        return self.trainer.global_step if hasattr(self, "trainer") else 0


def test_time_alone_limits_the_training(tmp_path: Path) -> None:
    seen = learning_rates(tmp_path, TernarySNNModule(**TINY, lr=0.1), _StepClock({"seconds": 10}))
    assert seen == pytest.approx([cosine(0.1, step / 10) for step in range(10)])
    seen = learning_rates(tmp_path, TernarySNNModule(**TINY, lr=0.1), max_time={"seconds": 1})
    assert seen[0] == 0.1
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen))
    with pytest.raises(ValueError, match="warmup_epochs=2 .*max_time alone"):
        trainer(tmp_path, max_time="00:00:01:00").fit(TernarySNNModule(**TINY, warmup_epochs=2), data())


def test_a_schedule_needs_to_know_the_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'cosine' .* max_epochs \(it is -1\), max_steps or max_time"):
        trainer(tmp_path, max_epochs=-1).fit(TernarySNNModule(**TINY), data())
    steps = learning_rates(tmp_path, TernarySNNModule(**TINY, sched="step", lr=0.1), max_steps=5)
    assert steps == pytest.approx([0.1] * 5)  # which drops after 90 epochs, whenever training ends


def test_triangular_rises_and_falls_to_nothing(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY, lr=0.4, sched="triangular", warmup_epochs=0.5)
    rates = learning_rates(tmp_path, module, max_epochs=3)  # of 4 batches
    expected = [0.0, 0.2, *(0.4 * (10 - k) / 10 for k in range(10))]
    assert rates == pytest.approx(expected)


def test_triangular_with_max_steps(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY, lr=0.4, sched="triangular")
    assert learning_rates(tmp_path, module, max_steps=5) == pytest.approx([0.4 * (5 - k) / 5 for k in range(5)])


def test_triangular_must_have_an_end_and_a_way_down(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'triangular' must know how many steps there are.*max_epochs"):
        learning_rates(tmp_path, TernarySNNModule(**TINY, sched="triangular"), max_epochs=-1, max_time={"hours": 1})
    with pytest.raises(ValueError, match="takes all of the 8 steps"):
        learning_rates(tmp_path, TernarySNNModule(**TINY, sched="triangular", warmup_epochs=2), max_epochs=2)
    with pytest.raises(ValueError, match=r"parts of epochs, got warmup_epochs=0.5"):
        learning_rates(tmp_path, TernarySNNModule(**TINY, sched="cosine", warmup_epochs=0.5), max_epochs=2)
