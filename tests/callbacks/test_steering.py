"""Callbacks that steer training: a whitened first convolution, fewer time steps in the first epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tspike import TernarySNNModule
from lightning_tspike.callbacks import LastCheckpoint, TimestepSchedule, WhitenedConvolution
from lightning_tspike.callbacks.whitening import whitening_filters
from lightning_tspike.data import DigitsDataModule

TINY = {"backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2}


def module(width: int = 8, **options: Any) -> TernarySNNModule:
    return TernarySNNModule(**TINY, backbone_kwargs={"layers": [1], "widths": [width]}, **options)


def fit(
    folder: Path, trained: TernarySNNModule, *callbacks: L.Callback, ckpt_path: str | None = None, **options: Any
) -> L.Trainer:
    L.seed_everything(3, verbose=False)
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 0}  # fmt: skip
    trainer = L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)
    trainer.fit(trained, DigitsDataModule(batch_size=100), ckpt_path=ckpt_path)
    return trainer


class Timesteps(L.Callback):
    """Notes T of every epoch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append(pl_module.network.timesteps)


def test_responses_to_whitening_filters_are_uncorrelated() -> None:
    images = torch.randn(200, 2, 12, 12).cumsum(-1)  # neighbours are much alike
    filters = whitening_filters(images, (2, 2))
    assert filters.shape == (8, 2, 2, 2)
    responses = torch.nn.functional.conv2d(images, filters).transpose(0, 1).flatten(1)
    moments = responses @ responses.T / responses.shape[1]
    torch.testing.assert_close(moments, torch.eye(8), atol=2e-2, rtol=0)
    strengths = (filters.flatten(1).norm(dim=1) ** -2).tolist()  # variance along each direction, and epsilon
    assert strengths == sorted(strengths, reverse=True)


def test_first_convolution_is_whitened_and_stays_so(tmp_path: Path) -> None:
    trained = module(weight_decay=0.5)
    before = trained.network.model.conv1.weight.clone()
    trainer = fit(tmp_path, trained, WhitenedConvolution(images=300), LastCheckpoint(tmp_path))
    weight = trained.network.model.conv1.weight
    assert not weight.requires_grad
    data = DigitsDataModule(batch_size=300)
    data.prepare_data()
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    responses = torch.nn.functional.conv2d(images, weight).transpose(0, 1).flatten(1)
    moments = responses @ responses.T / responses.shape[1]
    torch.testing.assert_close(moments.diag(), torch.ones(8), atol=0.35, rtol=0)  # of other images than those it saw
    assert not torch.equal(weight, before)
    kept = weight.clone()
    resumed = module()
    fit(tmp_path, resumed, WhitenedConvolution(images=10), ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=3)
    assert torch.equal(resumed.network.model.conv1.weight, kept)
    assert trainer.current_epoch == 2


def test_too_many_whitening_filters(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"16 whitening filters.* have 9"):
        fit(tmp_path, module(width=16), WhitenedConvolution())
    with pytest.raises(MisconfigurationException, match="'fc' is none; there are conv1"):
        fit(tmp_path, module(), WhitenedConvolution(layer="fc"))


def test_first_epochs_have_fewer_time_steps(tmp_path: Path) -> None:
    watch = Timesteps()
    callbacks = [TimestepSchedule(first=1, share=0.5), watch, LastCheckpoint(tmp_path)]
    trained = module()
    fit(tmp_path, trained, *callbacks, max_epochs=4)
    assert watch.seen == [1, 1, 2, 2]
    assert trained.network.timesteps == 2


def test_a_resumed_run_knows_how_many_time_steps_come(tmp_path: Path) -> None:
    class Stopped(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    options = {"max_epochs": 4}
    fit(tmp_path, module(), TimestepSchedule(1, 0.5), LastCheckpoint(tmp_path), Stopped(), min_epochs=1, **options)
    checkpoint = str(tmp_path / "last.ckpt")
    loaded = TernarySNNModule.load_from_checkpoint(checkpoint)
    assert loaded.network.timesteps == 1  # as it was trained so far
    watch = Timesteps()
    fit(tmp_path, loaded, TimestepSchedule(1, 0.5), watch, ckpt_path=checkpoint, **options)
    assert watch.seen == [1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"first": 0}, "first must be at least 1"), ({"share": 1.0}, "share must lie between 0 and 1, got 1.0")],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimestepSchedule(**options)


def test_schedule_of_time_steps_needs_more_than_the_first(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="timesteps=2.*first=2"):
        fit(tmp_path, module(), TimestepSchedule(first=2))
