"""What the analysis of a graph says of amplitudes: which are live, which a norm cancels, which are tied."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork, ternarize
from tests.narrow_heads import narrow_head


def _training(network: SpikingNetwork) -> SpikingNetwork:
    """In training mode, with norms whose eps is next to nothing, so that what cancels, cancels exactly."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.eps = 1e-14
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.train()


def _amplitude_gradients(network: SpikingNetwork) -> dict[str, float]:
    """Greatest gradient of each layer's amplitudes, relative to the greatest of all."""
    x, y = torch.randn(6, 3, 64, 64, dtype=torch.float64), torch.arange(6)
    nn.functional.cross_entropy(network(x), y).backward()
    size = {name: neuron.raw_amplitude.grad.abs().max().item() for name, neuron in network.neurons().items()}
    return {name: value / max(size.values()) for name, value in size.items()}


@pytest.mark.parametrize(
    ("backbone", "amplitude", "cancelled"),
    [
        ("tspike_resnet_small", "layer", 5),  # all but those that reach an identity shortcut or the classifier
        ("tspike_resnet_small", "channel", 0),
        ("resnet18", "layer", 11),
        ("vgg11_bn", "layer", 7),  # live are those of the head, which has no norm
        # all but the last: every other one goes to a convolution, then a norm
        pytest.param("densenet121", "layer", 120, marks=pytest.mark.slow),
        ("regnetx_002", "layer", 30),
        pytest.param("mobilenetv2_100", "layer", 34, marks=pytest.mark.slow),
        ("mobilenetv2_100", "channel", 17),  # a depthwise convolution and a norm cancel channel by channel
        ("seresnet18", "layer", None),
    ],
)
def test_gradients_agree_with_the_derivation(
    lively: Callable[..., SpikingNetwork], backbone: str, amplitude: str, cancelled: int | None
) -> None:
    kwargs = narrow_head(backbone)
    network = _training(lively(backbone, num_classes=6, timesteps=2, amplitude=amplitude, backbone_kwargs=kwargs))
    effects = {neuron.name: neuron.effect for neuron in network.report().neurons}
    gradients = _amplitude_gradients(network)
    assert set(effects) == set(gradients)
    for name, gradient in gradients.items():
        if effects[name] == "cancelled":
            assert gradient < 1e-9, name
        else:
            assert gradient > 1e-6, name
    if cancelled is not None:
        assert list(effects.values()).count("cancelled") == cancelled


def test_cancelled_amplitudes_change_nothing_in_training(lively: Callable[..., SpikingNetwork]) -> None:
    network = _training(lively("resnet18", num_classes=6, timesteps=2))
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected = network(x)
    for neuron in network.report().neurons:
        if neuron.effect == "cancelled":
            network.model.get_submodule(neuron.name).raw_amplitude.data.fill_(2.0)
    assert torch.equal(network(x), expected)  # a power of two: to the bit
    network.model.act1.raw_amplitude.data.fill_(2.0)  # live
    assert not torch.allclose(network(x), expected)


def test_cancelled_amplitudes_are_frozen_unless_asked_for() -> None:
    frozen = create_network(NetworkConfig("resnet18", timesteps=2))
    learned = {name for name, neuron in frozen.neurons().items() if neuron.raw_amplitude is not None}
    assert learned == {"act1", "layer1.0.act2", "layer2.0.act2", "layer3.0.act2", "layer4.0.act2", "layer4.1.act2"}
    text = str(frozen.report())
    assert "17 neuron layers: 6 with a learned amplitude" in text
    assert "6 live, 11 cancelled by norms in training" in text
    everything = create_network(NetworkConfig("resnet18", timesteps=2, freeze_cancelled=False))
    assert all(neuron.raw_amplitude is not None for neuron in everything.neurons().values())


class _Net(nn.Module):
    """One neuron layer in front of a linear map that varies."""

    def __init__(self, follow: Callable[[nn.Module, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.act1, self.act2, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(), nn.Linear(4, 6)
        self.follow = follow
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act2(self.follow(self, self.act1(self.stem(x)))).mean((2, 3)))


NETS = {
    "a norm removes a bias right before it": (
        lambda m, x: m.bn(m.conv(x)), {"conv": nn.Conv2d(4, 4, 3), "bn": nn.BatchNorm2d(4)}, True
    ),
    "a bias elsewhere does not scale": (
        lambda m, x: m.bn(m.conv(x).abs()), {"conv": nn.Conv2d(4, 4, 3), "bn": nn.BatchNorm2d(4)}, False
    ),
    "a norm on spikes": (lambda m, x: m.bn(x), {"bn": nn.BatchNorm2d(4)}, True),
    "pools let a scale pass": (
        lambda m, x: m.bn(m.conv(nn.functional.max_pool2d(x, 2))),
        {"conv": nn.Conv2d(4, 4, 3, bias=False), "bn": nn.BatchNorm2d(4)}, True
    ),
    "no norm": (lambda m, x: m.conv(x), {"conv": nn.Conv2d(4, 4, 3)}, False),
    "group norm": (
        lambda m, x: m.gn(m.conv(x)), {"conv": nn.Conv2d(4, 4, 3, bias=False), "gn": nn.GroupNorm(2, 4)}, True
    ),
    "group norm keeps a bias": (
        lambda m, x: m.gn(m.conv(x)), {"conv": nn.Conv2d(4, 4, 3), "gn": nn.GroupNorm(2, 4)}, False
    ),
    "one of two paths": (
        lambda m, x: m.bn(m.conv(x)) + x,
        {"conv": nn.Conv2d(4, 4, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(4)}, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NETS)
def test_small_cases(case: str) -> None:
    follow, layers, is_cancelled = NETS[case]
    network = _training(ternarize(_Net(follow, **layers), 2, freeze_cancelled=False, input_size=(3, 64, 64)).double())
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.bias)
    effects = {neuron.name: neuron.effect for neuron in network.report().neurons}
    assert effects == {"act1": "cancelled" if is_cancelled else "live", "act2": "live"}
    assert (_amplitude_gradients(network)["act1"] < 1e-9) == is_cancelled


class _Sum(nn.Module):
    """Spikes of two layers meet in a sum; those of a third are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.conv1(x))
        x = x + self.act2(self.conv2(x))
        return self.fc(torch.cat([x, self.act3(self.conv3(x))], 1).mean((2, 3)))


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_amplitudes_that_meet_in_a_sum_are_one(amplitude: str) -> None:
    network = ternarize(_Sum(), 2, amplitude=amplitude, input_size=(3, 8, 8))
    model = network.model
    assert model.act1.raw_amplitude is model.act2.raw_amplitude
    assert model.act3.raw_amplitude is not model.act1.raw_amplitude  # a concatenation keeps gauges by channel
    assert sum("raw_amplitude" in name for name, _ in network.named_parameters()) == 2
    rows = {neuron.name: neuron for neuron in network.report().neurons}
    assert rows["act2"].shares_amplitude_with == "act1"
    assert rows["act1"].group == rows["act2"].group != rows["act3"].group
    assert f"{amplitude}, that of act1" in str(network.report())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert torch.equal(torch.as_tensor(model.act1.amplitude), torch.as_tensor(model.act2.amplitude))
    assert (torch.as_tensor(model.act1.amplitude) != 1).any()


def test_report_before_and_after_folding(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(neuron.foldable for neuron in network.report().neurons)
    assert {neuron.amplitude for neuron in network.report().neurons} == {"layer"}
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not network.training


class _Between(nn.Module):
    """Two neuron layers and, between them, something that the analysis has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act1, self.act2 = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ReLU()
        self.conv, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 6)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(self.act1(self.stem(x)))
        return self.fc(self.act2(self.conv(x)).mean((2, 3)))


class _Attention(_Between):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        y = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return y.transpose(1, 2).reshape(x.shape)


class _PoolOfTokens(_Between):
    """A pool over [B, N, C] looks at neighbours among channels."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(x.flatten(2), 3, 1, 1).unflatten(2, x.shape[2:])


class _Unbatched(_Between):
    """A convolution of single samples: their channels are dimension 0."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.conv(sample) for sample in x.unbind(0)])


class _Rounding(_Between):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return (3 * x).to(torch.int32).to(x.dtype)


class _Reinterpreting(_Between):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32).bitwise_right_shift(3).to(x.dtype)


class _Normed(_Between):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.conv = nn.utils.weight_norm(self.conv)


class _HookedLayer(_Between):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda _m, _args, output: output + 1.0)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)  # so that the hook's sum must not take up the amplitude


class _HookedNeuron(_Between):
    def __init__(self) -> None:
        super().__init__()
        self.act1.register_forward_hook(lambda _m, _args, output: output.clamp(max=0.6))


class _Writing(_Between):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 0] = 1.0
        return y


class _NamedOutputs(_Between):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return {"spikes": x, "nothing": None}["spikes"] + torch.frexp(x).mantissa


@pytest.mark.parametrize(
    "kind",
    [
        _Attention, _PoolOfTokens, _Unbatched, _Rounding, _Reinterpreting, _Normed, _HookedLayer, _HookedNeuron,
        _Writing, _NamedOutputs,
    ],
)  # fmt: skip
@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_what_cannot_be_followed_keeps_its_amplitude(
    kind: type[_Between], amplitude: str, randomize: Callable[[SpikingNetwork], SpikingNetwork]
) -> None:
    torch.manual_seed(1)
    network = ternarize(kind(), 2, amplitude=amplitude, freeze_cancelled=False, input_size=(3, 8, 8))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded, report = fold(randomize(network), x)
    assert report.kept == ["act1"]
    assert report.deviation < 1e-12
    assert not report.silent
    torch.testing.assert_close(folded(x), network(x))


def test_a_hook_that_only_looks_is_no_obstacle(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    model, seen = _Between(), []
    network = ternarize(model, 2, freeze_cancelled=False, input_size=(3, 8, 8))
    for layer in (model.act1, model.conv):
        layer.register_forward_hook(lambda _m, _args, output: seen.append(output.shape))
    assert fold(randomize(network))[1].kept == []


def test_a_view_of_a_permuted_tensor(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    """ShuffleNetV2's shuffle of channels."""
    block = torchvision.models.shufflenetv2.InvertedResidual
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), block(8, 8, 1), block(8, 8, 1), nn.Flatten(), nn.Linear(288, 3)
    )
    network = ternarize(model, 2, amplitude="channel", freeze_cancelled=False, input_size=(3, 8, 8))
    _, report = fold(randomize(network))
    assert report.kept == []


def test_torchvisions_vision_transformer(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    model = torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    network = ternarize(model, 2, freeze_cancelled=False, input_size=(3, 32, 32))
    assert len(network.neurons()) == 2
    _, report = fold(randomize(network))
    assert report.deviation < 1e-12
    assert len(report.neurons) == 2


def test_torchvisions_densenet_has_a_function_at_its_end(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    model = torchvision.models.DenseNet(8, (1, 1, 1, 1), 8, num_classes=3)
    network = ternarize(model, 2, freeze_cancelled=False, input_size=(3, 32, 32))
    assert len(network.neurons()) == 13
    assert "relu" in network.neurons()
    assert fold(randomize(network))[1].kept == []
