"""Averaged weights: who has them, which statistics belong to them, and that a resumed run has the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.callbacks import AveragedWeights, BestCheckpoint, FoldExport, LastCheckpoint
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.store.checkpoint import read_checkpoint

TINY = {
    "backbone": "tspike_resnet_small",
    "num_classes": 10,
    "in_chans": 1,
    "timesteps": 2,
    "backbone_kwargs": {"layers": [1], "widths": [4]},
    "lr": 0.05,
}


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    defaults = {
        "max_epochs": 2, "limit_train_batches": 6, "limit_val_batches": 1, "limit_test_batches": 1,
        "accelerator": "cpu", "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    defaults["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)


def same(network: SpikingNetwork, other: SpikingNetwork) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())


class _Keep(L.Callback):
    """The images of every batch, the weights after every step, and what is validated."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.weights: list[SpikingNetwork] = []
        self.validated: list[SpikingNetwork] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: TernarySNNModule, outputs: object, batch: tuple[torch.Tensor, ...], _: int
    ) -> None:
        self.images.append(batch[0])
        self.weights.append(deepcopy(module.network))

    def on_validation_batch_end(self, trainer: L.Trainer, module: TernarySNNModule, *_: object) -> None:
        if not trainer.sanity_checking:
            self.validated.append(deepcopy(module.network))


@pytest.mark.parametrize("memory", ["lean", *(pytest.param(m, marks=pytest.mark.slow) for m in ("full", "packed"))])
def test_one_network_is_validated_saved_folded_and_left(tmp_path: Path, memory: str) -> None:
    """The average of the weights of all steps, with its own statistics on the last batches of the epoch."""
    L.seed_everything(3, verbose=False)
    module, data = TernarySNNModule(**TINY, memory=memory), DigitsDataModule(batch_size=32)
    keep, last, export = _Keep(), LastCheckpoint(tmp_path), FoldExport(on_error="raise")
    run = trainer(tmp_path, AveragedWeights(decay=0.8, norm_batches=3), keep, BestCheckpoint(), last, export)
    run.fit(module, data)

    expected = deepcopy(module.network)
    mean = dict(keep.weights[0].named_parameters())
    for step in keep.weights[1:]:
        mean = {name: 0.8 * mean[name] + 0.2 * p for name, p in step.named_parameters()}
    for name, parameter in expected.named_parameters():
        parameter.data.copy_(mean[name])
    update_bn(keep.images[-3:], expected)
    torch.testing.assert_close(module.network.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)
    assert not same(keep.weights[-1], module.network)

    assert same(keep.validated[-1], module.network)
    saved = read_checkpoint(last.best_model_path).network
    assert same(saved, module.network)
    x = torch.randn(8, 1, 8, 8)
    folded = zoo.load(export.folders[Path(last.best_model_path)])
    torch.testing.assert_close(folded(x), module.network.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_measured_with_its_average(tmp_path: Path) -> None:
    """By the trainer that has fitted, too, and of another epoch than the last."""
    L.seed_everything(3, verbose=False)
    module, data = TernarySNNModule(**TINY), DigitsDataModule(batch_size=32)
    last = LastCheckpoint(tmp_path)
    run = trainer(tmp_path, AveragedWeights(decay=0.8), last)
    run.fit(module, data)
    first = tmp_path / "first.ckpt"
    first.write_bytes(Path(last.best_model_path).read_bytes())
    run.fit_loop.max_epochs = 3
    run.fit(module, data)
    for measure in (run.test, run.validate):
        measure(module, data, ckpt_path=last.best_model_path, verbose=False)
        measure(module, data, ckpt_path=first, verbose=False)
        assert same(module.network, read_checkpoint(first).network)
        assert not same(module.network, read_checkpoint(last.best_model_path).network)
    run.save_checkpoint(tmp_path / "again.ckpt")
    assert same(module.network, read_checkpoint(tmp_path / "again.ckpt").network)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Bit for bit, with dropout and with fewer batches in an epoch than the statistics are taken from."""

    def run(folder: Path, epochs: int, resume: Path | None) -> dict[str, object]:
        L.seed_everything(7, verbose=False)
        module = TernarySNNModule(**TINY, sched="constant")
        module.network.model.fc = nn.Sequential(nn.Dropout(0.5), module.network.model.fc)
        last, average = LastCheckpoint(folder), AveragedWeights(decay=0.9, norm_batches=8)
        fit = trainer(folder, last, average, max_epochs=epochs)
        fit.fit(module, DigitsDataModule(batch_size=32), ckpt_path=resume)
        checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
        return {key: checkpoint[key] for key in ("state_dict", "current_model_state", "averaging_state")}

    whole = run(tmp_path / "whole", 4, None)
    run(tmp_path / "first", 2, None)
    resumed = run(tmp_path / "second", 4, tmp_path / "first" / "last.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert not torch.equal(*(whole[key]["network.model.bn1.running_mean"] for key in list(whole)[:2]))


def test_statistics_are_those_of_the_time_steps_of_now(tmp_path: Path) -> None:
    """A network that is trained for more time steps as training goes on."""

    class More(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, module: TernarySNNModule) -> None:
            module.network.timesteps = 1 + 2 * trainer.current_epoch

    module, keep = TernarySNNModule(**TINY), _Keep()
    trainer(tmp_path, More(), AveragedWeights(norm_batches=2), keep).fit(module, DigitsDataModule(batch_size=32))
    expected = deepcopy(module.network)
    update_bn(keep.images[-2:], expected)
    assert expected.timesteps == 3
    torch.testing.assert_close(module.network.state_dict(), expected.state_dict())


def test_a_run_that_ends_within_an_epoch(tmp_path: Path) -> None:
    module, keep = TernarySNNModule(**TINY, sched="none"), _Keep()
    run = trainer(tmp_path, AveragedWeights(norm_batches=2), keep, max_epochs=-1, max_steps=4)
    run.fit(module, DigitsDataModule(batch_size=32))
    expected = deepcopy(module.network)
    update_bn(keep.images[2:4], expected)
    torch.testing.assert_close(module.network.state_dict(), expected.state_dict())


def test_without_batches_statistics_are_averaged(tmp_path: Path) -> None:
    module, keep = TernarySNNModule(**TINY), _Keep()
    run = trainer(tmp_path, AveragedWeights(decay=0.8, norm_batches=0), keep, max_epochs=1)
    run.fit(module, DigitsDataModule(batch_size=32))
    mean = keep.weights[0].model.bn1.running_mean
    for step in keep.weights[1:]:
        mean = 0.8 * mean + 0.2 * step.model.bn1.running_mean
    torch.testing.assert_close(module.network.model.bn1.running_mean, mean)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"norm_batches": -1}, {"update_every_n_steps": 0}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(MisconfigurationException, match=f"{next(iter(options))} must be"):
        AveragedWeights(**options)


@pytest.mark.slow
def test_processes_agree_on_the_statistics(tmp_path: Path) -> None:
    """Each has seen images of its own; DDP by gloo."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import lightning as L
        import torch
        from lightning_tspike import TernarySNNModule
        from lightning_tspike.callbacks import AveragedWeights
        from lightning_tspike.data import DigitsDataModule

        if __name__ == "__main__":
            L.seed_everything(1)
            module = TernarySNNModule(**{TINY!r})
            trainer = L.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, limit_train_batches=4, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, callbacks=[AveragedWeights(norm_batches=2)],
            )
            trainer.fit(module, DigitsDataModule(batch_size=16))
            torch.save(module.network.state_dict(), f"{{trainer.global_rank}}.pt")
            torch.distributed.destroy_process_group()
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(one["model.bn1.running_mean"], torch.zeros(4))
