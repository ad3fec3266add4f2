"""The fold: same outputs, no amplitudes left, bare -1/0/+1; and it never deviates silently."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import (
    AvgPool2dSame,
    Conv2dSame,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from torch import nn

from lightning_tspike.folding import FoldError, FoldReport, fold, verify
from lightning_tspike.network import SpikingNetwork, ternarize
from lightning_tspike.network.rewrites import STANDARDIZED
from lightning_tspike.neurons import TernaryLIF

NARROW = {"mlp_ratio": 0.02}  # a narrow head: the full one is all of the time and nothing new
BACKBONES: dict[str, dict[str, object]] = {
    "tspike_resnet_small": {},
    "tspike_sew_resnet_small": {},  # spikes added to spikes
    "tspike_ms_resnet_small": {},  # shortcuts that carry reals
    "tspike_max_resnet_small": {},  # max pools between norms and neurons
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
    "resnet50d": {},  # average pools in the shortcuts
    "resnetblur50": {},  # anti-aliasing filters
    "resnext50_32x4d": {},  # grouped convolutions
    "vgg11_bn": NARROW,
    "vgg16_bn": NARROW,
    "vgg16": NARROW,  # no BN
    "densenet121": {},  # concatenation, norms before activations
    "regnetx_002": {},  # activations inside norms
    "hrnet_w18_small": {},  # one activation called at many places
    "dla34": {},  # the same, and concatenation
    "mobilenetv2_100": {},  # depthwise convolutions
    "seresnet50": {},  # squeeze and excitation
    "repvgg_a0": {},  # batch norm in the shortcuts
    "tspike_fast_resnet_small": {"norm_free_gain": 1.27},  # standardised weights instead of norms
    "nf_resnet26": {},  # the same, and products with gains
    "resnetv2_50x1_bit": {},  # standardised weights, group norms
}

LARGE = {
    "resnet34", "resnet50", "resnetblur50", "resnext50_32x4d", "vgg16_bn", "vgg16", "densenet121", "seresnet50",
    "nf_resnet26", "resnetv2_50x1_bit",
}  # fmt: skip


def _case(backbone: str, amplitude: str) -> Any:
    marks = [pytest.mark.slow] if amplitude == "layer" and backbone in LARGE else []
    return pytest.param(backbone, amplitude, marks=marks)


@pytest.mark.parametrize(
    ("backbone", "amplitude"), [_case(backbone, kind) for backbone in BACKBONES for kind in ("layer", "channel")]
)
def test_folded_equals_unfolded(lively: Callable[..., SpikingNetwork], backbone: str, amplitude: str) -> None:
    network = lively(backbone, num_classes=10, timesteps=2, amplitude=amplitude, backbone_kwargs=BACKBONES[backbone])
    # hrnet calls one activation with several numbers of channels: its one amplitude meets amplitudes per channel
    _check_fold(network, torch.randn(2, 3, 64, 64, dtype=torch.float64), all_fold=(backbone, amplitude) != MIXED)


MIXED = ("hrnet_w18_small", "channel")


def test_standardized_weights_become_plain() -> None:
    """Those of every kind: with a gain or without, with padding that depends on the image or not."""
    model = nn.Sequential(
        StdConv2d(3, 4, 3, bias=True), nn.ReLU(), StdConv2dSame(4, 6, 3, stride=2), nn.ReLU(),
        ScaledStdConv2d(6, 8, 3, groups=2), nn.ReLU(), ScaledStdConv2dSame(8, 8, 3, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    network = ternarize(model, timesteps=2, input_size=(3, 17, 17), freeze_cancelled=False).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("gain", "raw_amplitude")):
                parameter.mul_(0.5 + torch.rand_like(parameter))
    x = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    folded, report = fold(network, x)
    assert report.standardized == ("0", "2", "4", "6")
    assert not report.kept
    assert not any(isinstance(module, STANDARDIZED) for module in folded.modules())
    assert isinstance(folded.model[2], Conv2dSame)
    torch.testing.assert_close(folded(x), network.eval()(x), rtol=1e-9, atol=1e-12)
    again, report = fold(folded, x)
    assert report.standardized == ()
    assert again.rewrites.standardized == ("0", "2", "4", "6")


def _check_fold(network: SpikingNetwork, x: torch.Tensor, *, all_fold: bool = True, **options: bool) -> FoldReport:
    """Same logits, original untouched, no amplitudes left, bare spikes: all that a user expects of a fold."""
    before = copy.deepcopy(network.state_dict())
    folded, report = fold(network, x, **options)
    expected, got = network(x, per_step=True), folded(x, per_step=True)
    assert expected.std(1).mean() > 0.01  # the images matter: spikes reach the logits
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert report.deviation <= 1e-9
    assert len(report.neurons) == len(network.neurons())
    assert not report.silent
    spikes = _outputs(folded, x)
    assert set(spikes) == set(network.neurons())
    for neuron in report.neurons:
        if neuron.folded:
            assert {-1, 0, 1} >= set(spikes[neuron.name].unique().tolist()) > {0}, neuron.name
    kept = {name.removesuffix(".raw_amplitude") for name in folded.model.state_dict() if "raw_amplitude" in name}
    assert kept == set(report.kept)
    assert not kept or not all_fold
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return report


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_spikes_added_to_spikes_fold_by_stages(lively: Callable[..., SpikingNetwork], amplitude: str) -> None:
    """SEW-ResNet's ADD: the stem and the blocks of the first stage meet, then those of each further stage."""
    kwargs = {"layers": [2, 2], "widths": [8, 16]}
    network = lively("tspike_sew_resnet_small", num_classes=5, timesteps=2, amplitude=amplitude, backbone_kwargs=kwargs)
    report = _check_fold(network, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    groups = {neuron.name: neuron.group for neuron in report.neurons}
    first = {groups[name] for name in ("act1", "stages.0.0.body.5", "stages.0.1.body.5")}
    second = {groups[name] for name in ("stages.1.0.body.5", "stages.1.0.downsample.2", "stages.1.1.body.5")}
    assert len(first) == len(second) == 1
    assert first != second
    assert {layer.holds for layer in report.layers} == {"real", "ternary", "integer"}


@pytest.mark.parametrize(
    "options",
    [
        {"neuron": "binary_lif"},
        {"neuron": "ternary_if"},
        {"neuron": "ctsn"},
        {"neuron": "ctsn_events", "amplitude": "channel"},
        {"neuron": "ternary_if", "levels": 3, "reset": "soft", "threshold": 0.2, "amplitude": "channel"},
        {"neuron": "quantized", "levels": 2, "learn_threshold": True},
        {"reset": "soft", "surrogate": "arctan"},
        {"learn_decay": True, "learn_threshold": True, "amplitude": "channel"},
        {"couple_threshold": True, "amplitude": "channel"},
        {"couple_threshold": True, "freeze_cancelled": False},
    ],
)
def test_every_neuron_folds(lively: Callable[..., SpikingNetwork], options: dict[str, object]) -> None:
    network = lively("tspike_resnet_small", timesteps=4, **options)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.rpartition(".")[2] in ("raw_memory", "raw_decay", "threshold"):
            parameter.data += torch.rand_like(parameter) - 0.3
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    folded, report = fold(network, x)
    assert (folded(x) - network(x)).abs().max() <= 1e-9 * network(x).abs().max()
    assert not report.kept
    assert not report.silent
    again, report = fold(folded, x)  # nothing is left to do
    assert torch.equal(again(x), folded(x))
    assert all(neuron.amplitude == (1.0,) for neuron in report.neurons)


def test_anti_aliasing_average_pools_become_integer_sums(lively: Callable[..., SpikingNetwork]) -> None:
    network, x = lively("resnetaa50", timesteps=1), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain, summed = _check_fold(network, x), _check_fold(network, x, integer_pools=True)
    assert summed.sum_pools == ("maxpool", "layer2.0.aa", "layer3.0.aa", "layer4.0.aa")
    assert summed.addition_only > plain.addition_only


@pytest.mark.parametrize("amplitude", ["channel", pytest.param("layer", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("backbone", "merged"),
    [
        ("tspike_resnet_small", 9),
        ("tspike_max_resnet_small", 10),
        ("resnet50", 53),
        ("regnetx_002", 44),
        ("densenet121", 59),
        ("vgg16", 0),
    ],
)
def test_merged_batch_norms(lively: Callable[..., SpikingNetwork], backbone: str, merged: int, amplitude: str) -> None:
    """Densenet's other norms read a concatenation: there is no one layer before them."""
    network = lively(backbone, timesteps=2, amplitude=amplitude, backbone_kwargs=BACKBONES[backbone])
    report = _check_fold(network, torch.randn(2, 3, 64, 64, dtype=torch.float64), merge_bn=True)
    assert len(report.merged_norms) == merged


class _Pooled(nn.Module):
    """Average pools of spikes: before a convolution, twice in a row, before a sum, and one with uneven windows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool1, self.pool2 = nn.AvgPool2d(3, 2, padding=1), nn.AvgPool2d((1, 2))
        self.pool3 = nn.AvgPool2d(3, 1, padding=1)
        self.uneven = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.real = nn.AvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.stem(self.real(x)))
        x = self.act2(self.conv1(self.pool2(self.pool1(x))))
        x = self.act3(self.conv2(self.uneven(x + self.pool3(x))))
        return self.fc(x.mean((2, 3)))


def test_average_pools_become_integer_sums(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    network = randomize(ternarize(_Pooled(), 2, freeze_cancelled=False, input_size=(3, 12, 12)))
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    report = _check_fold(network, x, integer_pools=True)
    assert set(report.sum_pools) == {"pool1", "pool2"}  # the others meet spikes in a sum, divide unevenly, read reals
    layer = {layer.name: layer for layer in report.layers}["conv1"]
    assert layer.holds == "integer"
    assert 1 < layer.largest <= 18  # 3 x 3 x 2 spikes
    assert {layer.name: layer.holds for layer in _check_fold(network, x).layers}["conv1"] == "real"


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
    assert report.neurons[0].amplitude == (network.model.act1.amplitude.item(),)
    assert report.neurons[0].amplitude[0] > 0
    assert not any("amplitude" in name for name in folded.state_dict())


def test_report_says_what_reaches_each_layer(lively: Callable[..., SpikingNetwork]) -> None:
    _, report = fold(lively("resnet18"), torch.randn(2, 3, 64, 64))
    holds = {layer.name: layer.holds for layer in report.layers}
    assert [name for name, kind in holds.items() if kind == "real"] == ["conv1", "fc"]
    assert all(kind == "ternary" for name, kind in holds.items() if name not in ("conv1", "fc"))
    assert "17 of 17 amplitudes folded" in str(report)
    assert report.to_dict()["neurons"][0]["name"] == "act1"


def test_several_levels_are_whole_numbers(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_vgg_small", timesteps=2, levels=3, reset="soft", threshold=0.15)
    folded, report = fold(network, torch.randn(2, 3, 16, 16), integer_pools=True)
    assert all(neuron.levels == 3 for neuron in folded.neurons().values())
    first, *others, _ = report.layers
    assert first.holds == "real"
    assert {(layer.holds, layer.largest) for layer in others} == {("integer", 12.0)}  # pools sum four


def test_report_counts_operations(lively: Callable[..., SpikingNetwork]) -> None:
    """A ResNet-8 on 32x32 pixels, T = 2: the stem sees the image once, all else runs at every step."""
    _, report = fold(lively("tspike_resnet_small", num_classes=10, timesteps=2))
    macs = {layer.name: layer.dense_macs for layer in report.layers}
    assert macs["conv1"] == 32 * 32 * 16 * 3 * 9
    assert macs["stages.1.0.conv1"] == 2 * 16 * 16 * 32 * 16 * 9
    assert macs["fc"] == 2 * 64 * 10
    real = macs["conv1"] + macs["fc"]  # the image, and averages of spikes
    assert report.addition_only == pytest.approx(1 - 2 / len(macs))
    assert report.addition_only_macs == pytest.approx(1 - real / sum(macs.values()))
    assert json.loads(json.dumps(report.to_dict()))["addition_only"] == report.addition_only


def test_neurons_that_never_fire_are_named(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    network.model.stages[2][0].act1.threshold.fill_(1e6)
    _, report = fold(network)
    assert report.silent == ["stages.2.0.act1"]
    assert "never fired, so not verified: stages.2.0.act1" in str(report)


def test_product_of_spikes_keeps_what_cannot_fold(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    """A product of two signals has no gauge of its own: those neurons are named, and the rest is still exact."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv1, self.conv2 = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
            self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act1(self.stem(x))
            return self.fc((self.act2(self.conv1(x)) * self.act3(self.conv2(x))).mean((2, 3)))

    network = randomize(ternarize(Gated(), 2, freeze_cancelled=False, input_size=(3, 8, 8)))
    report = _check_fold(network, torch.randn(2, 3, 8, 8, dtype=torch.float64), all_fold=False)
    assert report.kept == ["act2", "act3"]
    assert all(name in str(report) for name in report.kept)


def test_a_gate_folds_but_leaves_reals(lively: Callable[..., SpikingNetwork]) -> None:
    """Squeeze and excitation: the gate is a sigmoid, of gauge 1, so the gauge of what it multiplies passes through."""
    _, report = fold(lively("seresnet18", timesteps=2))
    assert not report.kept
    holds = {layer.name: layer.holds for layer in report.layers}
    assert holds["layer1.0.se.fc1"] == "real"


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
    network = ternarize(_Branches(), 3, freeze_cancelled=False, input_size=(2, 8, 8)).double().eval()
    assert network.model.act3.raw_amplitude is not network.model.act4.raw_amplitude  # tied in vain: the gate pins them
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


def _permuted(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x[:, m.order]


def _number(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x / (1 + x.abs().max().item())


def _borrowed(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + nn.functional.conv2d(x, m.conv.weight, padding=1)  # without the bias: no call of the module


def _indices(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.max_pool2d(x, 2, return_indices=True)[0]


def _written(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.narrow(1, 0, 2).add_(0.3)
    return y


def _shuffled(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.shuffle(x)


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
@pytest.mark.parametrize(
    ("follow", "folds"),
    [(_permuted, True), (_number, False), (_borrowed, False), (_indices, False), (_written, False), (_shuffled, True)],
)
def test_traps(
    randomize: Callable[[SpikingNetwork], SpikingNetwork],
    follow: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    folds: bool,
    amplitude: str,
) -> None:
    """Indices that are tensors, numbers made of tensors, borrowed weights, two results, writing into a view."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.act1, self.act2, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(4, 3)
            self.shuffle = nn.ChannelShuffle(2)
            self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.act2(self.conv(follow(self, self.act1(self.stem(x))))).mean((2, 3)))

    network = randomize(ternarize(Net(), 2, amplitude=amplitude, freeze_cancelled=False, input_size=(3, 8, 8)))
    report = _check_fold(network, torch.randn(2, 3, 8, 8, dtype=torch.float64), all_fold=False)
    assert ("act1" not in report.kept) == folds
    assert "act2" not in report.kept


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


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_amplitude_of_zero_is_kept(lively: Callable[..., SpikingNetwork], amplitude: str) -> None:
    network = lively("tspike_resnet_small", amplitude=amplitude)
    network.model.stages[0][0].act1.raw_amplitude.data.flatten()[0].zero_()
    folded, report = fold(network)
    assert report.kept == ["stages.0.0.act1"]
    left = folded.model.stages[0][0].act1.amplitude.flatten()
    assert left[0] == 0
    assert (left[1:] == 1).all()


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


class _SamePool(nn.Module):
    """An average pool of timm's, a subclass of torch's whose forward pads and heeds no other divisor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), AvgPool2dSame(2, 2)
        self.conv2, self.act2, self.head = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act2(self.conv2(self.pool(self.act1(self.conv1(x))))).mean((2, 3)))


def test_a_subclass_of_a_pool_is_followed_through_its_own_forward() -> None:
    network = ternarize(_SamePool(), 2, input_size=(1, 9, 9)).double()
    for neuron in network.neurons().values():
        torch.nn.init.constant_(neuron.raw_amplitude, 1.3)
    report = _check_fold(network, torch.randn(2, 1, 9, 9, dtype=torch.float64), integer_pools=True)
    assert report.sum_pools == ()
