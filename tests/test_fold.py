"""The fold: same outputs, no amplitudes left, bare -1/0/+1; and it never deviates silently."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_tspike.fold import FoldError, fold, verify
from lightning_tspike.neurons import TernaryLIF
from lightning_tspike.ternarize import SpikingNetwork, ternarize

BACKBONES = {
    "tspike_resnet_small": {},
    "resnet18": {},
    "resnet34": {},
    "vgg11_bn": {"mlp_ratio": 0.05},  # a narrow head: the full one is tested with vgg16_bn
    "vgg16_bn": {},
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folded_equals_unfolded(lively: Callable[..., SpikingNetwork], backbone: str) -> None:
    network = lively(backbone, num_classes=10, timesteps=3, backbone_kwargs=BACKBONES[backbone])
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    folded, report = fold(network, x)

    expected, got = network(x, per_step=True), folded(x, per_step=True)
    assert expected.std(1).mean() > 0.01  # the images matter: spikes reach the logits
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert report.deviation <= 1e-9

    assert not any("amplitude" in name for name in folded.state_dict())
    assert all(neuron.folded for neuron in report.neurons)
    assert len(report.neurons) == len(network.neurons())
    spikes = _outputs(folded, x)
    assert set(spikes) == set(network.neurons())
    for name, values in spikes.items():
        assert set(values.unique().tolist()) == {-1, 0, 1}, name
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def _outputs(network: SpikingNetwork, x: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        neuron.register_forward_hook(lambda _m, _a, out, name=name: seen.__setitem__(name, out))
        for name, neuron in network.neurons().items()
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return seen


def test_powers_of_two_fold_to_the_bit_in_float32(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("resnet18", num_classes=10, timesteps=2).float()
    for i, neuron in enumerate(network.neurons().values()):
        neuron.raw_amplitude.data.fill_((0.5, 2.0, 1.0)[i % 3])
    x = torch.randn(2, 3, 64, 64)
    folded, _ = fold(network)
    assert folded.model.conv1.weight.dtype == torch.float32
    assert torch.equal(folded(x), network(x))


def test_shortcut_rescales_the_threshold_behind_it(lively: Callable[..., SpikingNetwork]) -> None:
    """u = BN(...) + a * s is stored as u / a, so the neuron that reads it fires at theta / a."""
    network = lively("tspike_resnet_small")
    folded, _ = fold(network)
    a = network.model.act1.amplitude.item()
    assert folded.model.stages[0][0].act2.threshold.item() == pytest.approx(0.5 / a)
    assert folded.model.stages[0][0].act1.threshold.item() == 0.5


def test_negative_raw_amplitude(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    network.model.act1.raw_amplitude.data.neg_()
    folded, report = fold(network)
    assert report.neurons[0].amplitude == network.model.act1.amplitude.item() > 0
    assert not any("amplitude" in name for name in folded.state_dict())


def test_report_says_what_reaches_each_layer(lively: Callable[..., SpikingNetwork]) -> None:
    _, report = fold(lively("resnet18"))
    holds = {layer.name: layer.holds for layer in report.layers}
    assert [name for name, kind in holds.items() if kind == "real"] == ["conv1", "fc"]
    assert all(kind == "ternary" for name, kind in holds.items() if name not in ("conv1", "fc"))
    assert "17 of 17 amplitudes folded" in str(report)
    assert report.to_dict()["neurons"][0]["name"] == "act1"


def test_squeeze_excitation_keeps_what_cannot_fold(lively: Callable[..., SpikingNetwork]) -> None:
    """A product of two signals has no gauge of its own: those neurons are named, and the rest is still exact."""
    network = lively("seresnet18", timesteps=2)
    folded, report = fold(network)
    kept = [neuron.name for neuron in report.neurons if not neuron.folded]
    assert 0 < len(kept) < len(report.neurons)
    assert kept == [name for name, neuron in folded.neurons().items() if neuron.raw_amplitude is not None]
    assert all(name in str(report) for name in kept)


class _Branches(nn.Module):
    """Neurons that add up, a norm behind a pool, a shared convolution, a norm without weights, spikes into a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.act1, self.act2, self.act3, self.act4 = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.norm, self.plain_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.stem(x))
        x = self.act2(self.norm(self.pool(x)))  # norm reads a gauge
        x = self.act3(self.plain_norm(self.conv(x)) + x)  # norm without weights writes one
        x = x + self.act4(self.conv(x))  # the same convolution again; two neurons add up
        return self.fc((x * torch.sigmoid(x)).mean((2, 3)))


def test_awkward_wiring_is_exact_or_named() -> None:
    network = ternarize(_Branches(), 3, input_size=(2, 8, 8)).double().eval()
    for i, neuron in enumerate(network.neurons().values()):
        neuron.raw_amplitude.data.fill_(0.6 + 0.3 * i)
    network.model.plain_norm.running_var.fill_(0.3)
    network.model.norm.running_mean.fill_(0.2)
    folded, report = fold(network)
    assert report.deviation <= 1e-9
    assert {neuron.name for neuron in report.neurons if not neuron.folded} == {"act2", "act3", "act4"}
    assert folded.model.act1.raw_amplitude is None


@pytest.mark.parametrize(
    "shift", [lambda x: x + 0.3, lambda x: torch.add(x, other=0.3), lambda x: x.add(0.3), lambda x: 1 - x, torch.exp]
)
def test_operations_without_a_gauge_are_left_alone(shift: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
            self.act1, self.act2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = shift(self.act1(self.conv(3 * x)))
            return self.fc(self.act2(x).mean((2, 3)))

    network = ternarize(Shifted(), 2, input_size=(2, 6, 6)).double()
    network.model.act1.raw_amplitude.data.fill_(0.7)
    network.model.act2.raw_amplitude.data.fill_(1.6)
    _, report = fold(network)
    assert {neuron.name: neuron.folded for neuron in report.neurons} == {"act1": False, "act2": True}


class _SharedWeight(nn.Module):
    """Two convolutions with one weight, and one convolution called on the image and on spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.conv3.weight = self.conv2.weight
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act2(self.conv2(self.conv1(self.act1(self.conv1(x)))))
        return self.fc(self.act3(self.conv3(x)).mean((2, 3)))


def test_shared_weights_are_left_alone_and_the_worst_input_counts() -> None:
    network = ternarize(_SharedWeight(), 2, input_size=(3, 8, 8)).double()
    for i, neuron in enumerate(network.neurons().values()):
        neuron.raw_amplitude.data.fill_(0.6 + 0.3 * i)
    _, report = fold(network)
    assert {n.name: n.folded for n in report.neurons}["act2"] is False  # conv3 reads it, and shares its weight
    assert next(layer.holds for layer in report.layers if layer.name == "conv1") == "real"


def test_synchronised_batch_norm_folds(lively: Callable[..., SpikingNetwork]) -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(lively("tspike_resnet_small"))
    assert all(neuron.folded for neuron in fold(network)[1].neurons)


def test_verify_names_the_first_layer_that_deviates(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    folded, _ = fold(network)
    folded.model.stages[1][0].act1.threshold *= 1.2
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(FoldError, match=r"first layer that deviates: stages\.1\.0\.act1"):
        verify(network, folded, x)


def test_verify_notices_a_classifier_that_deviates(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    folded, _ = fold(network)
    folded.model.fc.weight.data *= 1.001
    with pytest.raises(FoldError, match="first layer that deviates: the classifier"):
        verify(network, folded, torch.randn(2, 3, 32, 32, dtype=torch.float64))


def test_amplitude_of_zero(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    network.model.stages[0][0].act1.raw_amplitude.data.zero_()
    with pytest.raises(FoldError, match=r"amplitude of stages\.0\.0\.act1 is 0"):
        fold(network)


def test_weights_that_are_not_finite(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    network.model.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(FoldError, match="not finite"):
        fold(network)


def test_a_model_that_cannot_be_traced() -> None:
    class Untraceable(_Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.from_numpy(x.detach().numpy()))

    network = ternarize(Untraceable(), 2, input_size=(2, 8, 8))
    with pytest.raises(FoldError, match="Untraceable could not be traced"):
        fold(network)


def test_training_mode_of_the_original_is_kept(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small").train()
    folded, _ = fold(network)
    assert all(module.training for module in network.modules())
    assert not any(module.training for module in folded.modules())
    assert isinstance(folded.model.act1, TernaryLIF)
