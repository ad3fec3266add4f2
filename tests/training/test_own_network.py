"""A network and a loss of one's own in TernarySNNModule: trained, saved, resumed, folded and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_tspike as lt
from lightning_tspike.callbacks import BestCheckpoint, FoldExport, LastCheckpoint
from lightning_tspike.store.checkpoint import CheckpointError
from lightning_tspike.store.folder import FolderError, write_folder


class Own(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 3]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.act2, self.pool = nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.fc(self.pool(x).flatten(1))


def loader() -> DataLoader[Any]:
    torch.manual_seed(0)
    y = torch.arange(48) % 3
    x = 0.3 * torch.randn(48, 1, 8, 8)
    for k in range(3):
        x[y == k, :, 2 * k : 2 * k + 3] += 1
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(path: Path, module: lt.TernarySNNModule, epochs: int, **options: Any) -> Trainer:
    callbacks = [BestCheckpoint(dirpath=path), LastCheckpoint(dirpath=path), FoldExport(on_error="raise")]
    trainer = Trainer(
        max_epochs=epochs, default_root_dir=path, callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader(), loader(), **options)
    return trainer


@pytest.mark.parametrize("spiking", [False, True])
def test_trained_saved_folded_and_loaded(tmp_path: Path, spiking: bool) -> None:
    options: dict[str, Any] = {"amplitude": "channel", "decay": 0.5}
    own: nn.Module = lt.ternarize(Own(), 2, input_size=(1, 8, 8), **options) if spiking else Own()
    module = lt.TernarySNNModule(own, timesteps=2, lr=0.05, **options)
    assert module.network.num_classes == 3
    assert module.hparams["num_classes"] == 3
    fit(tmp_path, module, 4)
    x = next(iter(loader()))[0]
    expected = module.eval()(x)

    last = tmp_path / "last.ckpt"
    again = lt.TernarySNNModule.load_from_checkpoint(last, backbone=Own()).eval()
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    assert again.hparams["lr"] == 0.05
    assert next(iter(again.network.neurons().values())).raw_amplitude.shape == (8,)
    torch.testing.assert_close(lt.zoo.load(last, model=Own(), folded=False)(x), expected, rtol=0, atol=0)
    folded = lt.zoo.load(tmp_path / "last.folded", model=Own())
    torch.testing.assert_close(folded(x), expected)
    assert all(neuron.raw_amplitude is None for neuron in folded.neurons().values())

    for wrong, error in ((last, CheckpointError), (tmp_path / "last.folded", FolderError)):
        with pytest.raises(error, match=r"class tests.*Own|class .*test_own_network.Own.*zoo.load\(path, model="):
            lt.zoo.load(wrong)
    with pytest.raises(ValueError, match=r"test_own_network.Own, .*load_from_checkpoint\(path, backbone="):
        lt.TernarySNNModule.load_from_checkpoint(last)
    with pytest.raises(CheckpointError, match="conv1.weight"):
        lt.zoo.load(last, model=Own(width=4))


@pytest.mark.slow  # as any network is, see test_module.py
def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = Own().state_dict()

    def module() -> lt.TernarySNNModule:
        net = Own()
        net.load_state_dict(weights)
        return lt.TernarySNNModule(net, timesteps=2, sched="none")

    whole = module()
    fit(tmp_path / "whole", whole, 3)
    fit(tmp_path / "part", module(), 2)
    resumed = module()
    fit(tmp_path / "part", resumed, 3, ckpt_path=str(tmp_path / "part" / "last.ckpt"))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_network_of_the_zoo_stays_a_named_one(tmp_path: Path) -> None:
    module = lt.TernarySNNModule(lt.zoo.load("tspike-digits", folded=False), lr=0.01)
    assert module.hparams["backbone"] == "tspike_resnet_small"
    write_folder(tmp_path / "net", lt.fold(module.network)[0])
    assert lt.zoo.load(tmp_path / "net").config == module.network.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, "num_classes=5 does not fit the network that was given, which has 3"),
        ({"in_chans": 2}, "in_chans=2 does not fit"),
        ({"backbone_kwargs": {"width": 3}}, "backbone_kwargs are for backbones by name"),
        ({"pretrained": True}, "pretrained= is for backbones by name"),
        (
            {"loss": lambda per_step, targets: per_step.sum(), "label_smoothing": 0.1},
            "smooth the labels in your own loss",
        ),
        ({"colour": 1}, "colour"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        lt.TernarySNNModule(Own(), **options)


def test_options_of_neurons_that_are_there() -> None:
    net = lt.ternarize(Own(), 2, input_size=(1, 8, 8), reset="soft")
    with pytest.raises(ValueError, match="amplitude='fixed' does not fit .* 'layer': leave amplitude out"):
        lt.TernarySNNModule(net, amplitude="fixed")
    with pytest.raises(ValueError, match="reset='hard' does not fit .* 'soft': leave reset out"):
        lt.TernarySNNModule(net, reset="hard")
    assert lt.TernarySNNModule(net).hparams["reset"] == "soft"


def worst_step(per_step: Tensor, targets: Tensor) -> Tensor:
    """The time step with the greatest cross-entropy alone."""
    return torch.stack([F.cross_entropy(logits, targets) for logits in per_step]).max()


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    module = lt.TernarySNNModule("tspike_resnet_small", 3, 2, 1, loss=worst_step, sched="none", lr=0.05)
    x, y = next(iter(loader()))
    torch.testing.assert_close(module.training_step((x, y), 0), worst_step(module.network(x, per_step=True), y))
    fit(tmp_path, module, 1)
    assert module.hparams["loss"] == "worst_step"
    with pytest.raises(ValueError, match=r"got 'worst_step'; a checkpoint .*load_from_checkpoint\(path, loss="):
        lt.TernarySNNModule.load_from_checkpoint(tmp_path / "last.ckpt")
    again = lt.TernarySNNModule.load_from_checkpoint(tmp_path / "last.ckpt", loss=worst_step)
    assert again.objective.loss is worst_step
    assert lt.zoo.load(tmp_path / "last.ckpt").num_classes == 3  # no training, no loss
    silent = lt.TernarySNNModule("tspike_resnet_small", 3, 2, 1, loss=lambda per_step, targets: per_step)
    with pytest.raises(ValueError, match="must give one number"):
        silent.training_step((x, y), 0)


class Subclass(lt.TernarySNNModule):
    """Another loss and another optimizer, by overriding Lightning's hooks."""

    def __init__(self, backbone: nn.Module, scale: float = 2.0, **options: Any) -> None:
        super().__init__(backbone, **options)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.hparams["scale"] * F.multi_margin_loss(self(x), y)
        self.log("train/margin", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=self.hparams["lr"])


def test_a_subclass_overrides_hooks(tmp_path: Path) -> None:
    module = Subclass(Own(), scale=3.0, timesteps=2, lr=0.003)
    trainer = fit(tmp_path, module, 2)
    assert isinstance(trainer.optimizers[0], torch.optim.AdamW)
    assert "train/margin" in trainer.callback_metrics
    loaded = Subclass.load_from_checkpoint(tmp_path / "last.ckpt", backbone=Own()).eval()
    assert loaded.hparams["scale"] == 3.0
    x = next(iter(loader()))[0]
    torch.testing.assert_close(loaded(x), module.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(lt.zoo.load(tmp_path / "last.folded", model=Own())(x), loaded(x))
    with pytest.raises(TypeError, match="got 7"):
        Subclass(7)  # type: ignore[arg-type]
