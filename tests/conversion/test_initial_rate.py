"""Thresholds by firing rate: every layer fires as often as it is told to when a fit begins, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_tspike import SpikingNetwork, TernarySNNModule
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.conversion import set_firing_rate
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, ternarize

TINY = {
    **{"backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 3},
    "backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]},
}


def trainer(folder: Path, **options: object) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    return L.Trainer(default_root_dir=folder, **defaults | limits | options)


def rates_on(network: SpikingNetwork, images: Tensor) -> dict[str, float]:
    with firing_rates(network) as rates, torch.no_grad():
        network(images)
    return {name: rate.total for name, rate in rates.items()}


def thresholds(network: SpikingNetwork) -> dict[str, Tensor]:
    return {name: neuron.threshold.detach().clone() for name, neuron in network.neurons().items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reset": "soft", "learn_threshold": True},
        {"neuron": "ternary_if", "reset": "soft"},
        {"neuron": "binary_lif"},
        {"neuron": "ctsn"},
        {"amplitude": "channel"},
    ],
)
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_every_layer_fires_at_the_rate(options: dict[str, object], rate: float) -> None:
    network = create_network(NetworkConfig(**{**TINY, **options})).double()
    images = torch.randn(32, 1, 8, 8).double()
    weights = {name: p.clone() for name, p in network.named_parameters() if not name.endswith("threshold")}
    found = set_firing_rate(network, images, rate)
    assert network.training
    training = rates_on(network, images)  # batch norms by the batch, as while it was set
    evaluated = rates_on(network.eval(), images)  # and by the statistics that were taken from it
    for name in network.neurons():
        assert found[name] == pytest.approx(rate, rel=0.02)
        assert training[name] == pytest.approx(rate, rel=0.02)
        assert evaluated[name] == pytest.approx(rate, rel=0.1)
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters() if name in weights)


def test_frames_and_a_layer_called_at_several_places() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv1(x))
            return self.fc(self.act(3 * self.conv2(x)).mean((2, 3)))

    with pytest.warns(UserWarning, match="several places"):
        network = ternarize(Shared(), 2, input_size=(2, 8, 8))
    frames = torch.randn(16, 4, 2, 8, 8)
    set_firing_rate(network, frames, 0.2)
    assert rates_on(network, frames)["act"] == pytest.approx(0.2, rel=0.05)  # of both calls together


def test_a_layer_that_cannot() -> None:
    layers = nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    network = ternarize(nn.Sequential(*layers), 2, input_size=(1, 2, 2))
    nn.init.zeros_(network.model[1].weight)
    nn.init.zeros_(network.model[1].bias)
    with pytest.warns(UserWarning, match=r"cannot fire at a rate of 0.2: 2 \(0.000\)"):
        found = set_firing_rate(network, torch.randn(8, 1, 2, 2), 0.2)
    assert found["2"] == 0
    assert network.model[2].threshold == 0.5  # as it was
    for rate in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
            set_firing_rate(network, torch.randn(8, 1, 2, 2), rate)
    with pytest.raises(ValueError, match="on images, got none"):
        set_firing_rate(network, torch.zeros(0, 1, 2, 2), 0.2)


def test_a_fit_begins_at_the_rate(tmp_path: Path) -> None:
    L.seed_everything(1, verbose=False)
    module = TernarySNNModule(**TINY, initial_rate=0.15, lr=0.0)
    trainer(tmp_path).fit(module, DigitsDataModule(batch_size=512))
    data = DigitsDataModule(batch_size=512)
    data.setup("fit")
    for _ in range(2):  # on batches that it has not been set on as well
        found = rates_on(module.network.train(), next(iter(data.train_dataloader()))[0])
        assert found == pytest.approx(dict.fromkeys(found, 0.15), rel=0.15)


def test_it_is_set_once(tmp_path: Path) -> None:
    options = {**TINY, "initial_rate": 0.15, "lr": 0.0}
    run, module = trainer(tmp_path), TernarySNNModule(**options)
    run.fit(module, DigitsDataModule())
    run.save_checkpoint(tmp_path / "one.ckpt")
    first = thresholds(module.network)
    assert all(theta != 0.5 for theta in first.values())
    assert module.hparams["initial_rate"] == 0.15
    loaded = TernarySNNModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert loaded.hparams["initial_rate"] is None
    resumed = TernarySNNModule(**{**options, "initial_rate": 0.4})
    trainer(tmp_path, max_epochs=2).fit(resumed, DigitsDataModule(), ckpt_path=tmp_path / "one.ckpt")
    for again in (module, loaded):
        trainer(tmp_path).fit(again, DigitsDataModule())
    for again in (module, loaded, resumed):
        assert thresholds(again.network) == first


def test_with_the_learning_rate_finder(tmp_path: Path) -> None:
    """Its trial begins as a fit does, and what it has set is taken back with the weights."""
    from lightning.pytorch.tuner import Tuner

    module = TernarySNNModule(**TINY, initial_rate=0.15)
    run = trainer(tmp_path, limit_train_batches=8)
    Tuner(run).lr_find(module, DigitsDataModule(), num_training=5)
    assert all(theta == 0.5 for theta in thresholds(module.network).values())
    run.fit(module, DigitsDataModule())
    assert all(theta != 0.5 for theta in thresholds(module.network).values())


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"initial_rate must be a firing rate in \(0, 1\), or None; got 1.0"):
        TernarySNNModule(**TINY, initial_rate=1.0)
    with pytest.raises(ValueError, match="would replace the thresholds that pretrained=True fits"):
        TernarySNNModule(**TINY, initial_rate=0.2, pretrained=True)


@pytest.mark.slow
def test_all_processes_start_at_the_same_thresholds(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import lightning as L, torch
        from lightning_tspike import TernarySNNModule
        from lightning_tspike.data import DigitsDataModule

        if __name__ == "__main__":
            module = TernarySNNModule(**{TINY!r}, initial_rate=0.15, calibration_images=64, lr=0.0)
            trainer = L.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, limit_train_batches=1,
                limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            )
            trainer.fit(module, DigitsDataModule())
            torch.save([n.threshold for n in module.network.neurons().values()], f"rank{{trainer.global_rank}}.pt")
            torch.distributed.destroy_process_group()
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first == second
    assert all(theta != 0.5 for theta in first)
