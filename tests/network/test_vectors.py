"""Networks on vectors [B, F] and sequences of them, as on images and frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tspike import TernarySNNModule
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.folding import fold
from lightning_tspike.graph.tracing import TraceError
from lightning_tspike.network import ternarize


def perceptron(features: int = 20, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Linear(features, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(32, classes))


@register_model
def perceptron_of_a_test(pretrained: bool = False, num_classes: int = 4, in_chans: int = 20, **_: Any) -> nn.Module:
    model: Any = perceptron(in_chans, num_classes)
    model.pretrained_cfg = {"input_size": (20,)}
    return model


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_vectors_are_repeated_or_bring_their_own_time(amplitude: Any) -> None:
    network = ternarize(perceptron(), 3, amplitude=amplitude, freeze_cancelled=False).double().eval()
    with torch.no_grad():
        for neuron in network.neurons().values():
            neuron.raw_amplitude.uniform_(0.5, 1.5)
    x = torch.randn(6, 20).double() * 2
    sequence = torch.randn(6, 3, 20).double() * 2
    torch.testing.assert_close(network(x), network(x.unsqueeze(1).expand(-1, 3, -1)))
    assert network(sequence, per_step=True).shape == (3, 6, 4)
    folded, report = fold(network)
    assert all(neuron.folded and neuron.firing_rate > 0 for neuron in report.neurons)
    for given in (x, sequence):
        torch.testing.assert_close(folded(given), network(given))
    assert measure_energy(folded, x).macs == 20 * 32  # of the first layer, once for all time steps
    assert measure_energy(folded, sequence).macs == 3 * 20 * 32


def test_other_shapes_are_refused() -> None:
    network = ternarize(perceptron(), 3)
    assert network.input_size == ternarize(perceptron_of_a_test(), 3).input_size == (20,)
    for shape in ((2, 19), (2, 1, 4, 20), (20,)):
        with pytest.raises(ValueError, match=r"vectors \[B, 20\] or \[B, T, 20\], got shape"):
            network(torch.zeros(shape))
    assert network(torch.zeros(2, 5, 20)).shape == network(torch.zeros(2, 20)).shape  # a time step for each vector


def test_a_model_that_flattens_images_still_takes_images() -> None:
    flat = nn.Sequential(nn.Flatten(), *perceptron(3 * 6 * 6))
    assert ternarize(flat, 2).input_size == (3, 224, 224)
    assert ternarize(nn.Sequential(nn.Flatten(), *perceptron(3 * 6 * 6)), 2)(torch.zeros(5, 3, 6, 6)).shape == (5, 4)
    with pytest.raises(TraceError, match=r"say input_size=\(C, H, W\)"):
        ternarize(nn.Sequential(nn.Flatten(), *perceptron(3 * 6 * 6)), 2, amplitude="channel")


def test_training_on_vectors(tmp_path: Path) -> None:
    module = TernarySNNModule("perceptron_of_a_test", num_classes=4, in_chans=20, timesteps=2, lr=0.05)
    labels = torch.arange(64) % 4
    x: Tensor = torch.randn(64, 20) + 3 * nn.functional.one_hot(labels, 20)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 10}
    run = L.Trainer(default_root_dir=tmp_path, enable_model_summary=False, enable_checkpointing=False, **options)
    data = DataLoader([(x, labels)], batch_size=None)
    run.fit(module, data)
    assert run.test(module, data, verbose=False)[0]["test/acc1"] > 0.8
