"""The fold: same outputs, no amplitudes left, bare -1/0/+1; and it never deviates silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import (
    Conv2dSame,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from torch import nn

from lightning_tspike.folding import FoldError, fold, verify
from lightning_tspike.network import SpikingNetwork, ternarize
from lightning_tspike.network.rewrites import STANDARDIZED
from lightning_tspike.neurons import TernaryLIF
from tests.folding.check_fold import check_fold
from tests.narrow_heads import NARROW_HEAD

BACKBONES: dict[str, dict[str, object]] = {
    "tspike_resnet_small": {},
    "tspike_sew_resnet_small": {},  # spikes added to spikes
    "tspike_ms_resnet_small": {},  # shortcuts that carry reals
    "tspike_max_resnet_small": {},  # max pools between norms and neurons
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
    "resnet18d": {},  # average pools in the shortcuts
    "resnetblur50": {},  # anti-aliasing filters
    "resnext50_32x4d": {},  # grouped convolutions
    "vgg11_bn": NARROW_HEAD,
    "vgg16_bn": NARROW_HEAD,
    "vgg16": NARROW_HEAD,  # no BN
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


# others have amplitudes per channel alone, which ask for more: they fold where those of a layer do
BOTH = {"resnet18", *(name for name in BACKBONES if name.startswith("tspike"))}


def _cases() -> list[Any]:
    return [
        pytest.param(backbone, amplitude, marks=[pytest.mark.slow] if backbone in LARGE else [])
        for backbone in BACKBONES
        for amplitude in (("layer", "channel") if backbone in BOTH else ("channel",))
    ]


@pytest.mark.parametrize(("backbone", "amplitude"), _cases())
def test_folded_equals_unfolded(lively: Callable[..., SpikingNetwork], backbone: str, amplitude: str) -> None:
    network = lively(backbone, num_classes=10, timesteps=2, amplitude=amplitude, backbone_kwargs=BACKBONES[backbone])
    # hrnet calls one activation with several numbers of channels: its one amplitude meets amplitudes per channel
    check_fold(network, torch.randn(2, 3, 64, 64, dtype=torch.float64), all_fold=(backbone, amplitude) != MIXED)


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


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_spikes_added_to_spikes_fold_by_stages(lively: Callable[..., SpikingNetwork], amplitude: str) -> None:
    """SEW-ResNet's ADD: the stem and the blocks of the first stage meet, then those of each further stage."""
    kwargs = {"layers": [2, 2], "widths": [8, 16]}
    network = lively("tspike_sew_resnet_small", num_classes=5, timesteps=2, amplitude=amplitude, backbone_kwargs=kwargs)
    report = check_fold(network, torch.randn(2, 3, 16, 16, dtype=torch.float64))
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


@pytest.mark.slow
def test_anti_aliasing_average_pools_become_integer_sums(lively: Callable[..., SpikingNetwork]) -> None:
    network, x = lively("resnetaa50", timesteps=1), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain, summed = check_fold(network, x), check_fold(network, x, integer_pools=True)
    assert summed.sum_pools == ("maxpool", "layer2.0.aa", "layer3.0.aa", "layer4.0.aa")
    assert summed.addition_only > plain.addition_only


@pytest.mark.parametrize(
    ("backbone", "merged", "amplitude"),
    [
        ("tspike_resnet_small", 9, "layer"),
        ("tspike_resnet_small", 9, "channel"),
        ("tspike_max_resnet_small", 10, "channel"),
        ("regnetx_002", 44, "channel"),
        pytest.param("resnet50", 53, "layer", marks=pytest.mark.slow),
        pytest.param("densenet121", 59, "channel", marks=pytest.mark.slow),
        pytest.param("vgg16", 0, "channel", marks=pytest.mark.slow),
    ],
)
def test_merged_batch_norms(
    lively: Callable[..., SpikingNetwork],
    backbone: str,
    merged: int,
    amplitude: str,
) -> None:
    """Densenet's other norms read a concatenation: there is no one layer before them."""
    network = lively(backbone, timesteps=2, amplitude=amplitude, backbone_kwargs=BACKBONES[backbone])
    report = check_fold(network, torch.randn(2, 3, 64, 64, dtype=torch.float64), merge_bn=True)
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
    report = check_fold(network, x, integer_pools=True)
    assert set(report.sum_pools) == {"pool1", "pool2"}  # the others meet spikes in a sum, divide unevenly, read reals
    layer = {layer.name: layer for layer in report.layers}["conv1"]
    assert layer.holds == "integer"
    assert 1 < layer.largest <= 18  # 3 x 3 x 2 spikes
    assert {layer.name: layer.holds for layer in check_fold(network, x).layers}["conv1"] == "real"


def test_powers_of_two_fold_to_the_bit_in_float32(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("resnet18", num_classes=10, timesteps=2).float()
    for i, neuron in enumerate(network.neurons().values()):
        neuron.raw_amplitude.data.fill_((0.5, 2.0, 1.0)[i % 3])
    x = torch.randn(2, 3, 64, 64)
    folded, _ = fold(network, x)
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


def test_a_gate_folds_but_leaves_reals(lively: Callable[..., SpikingNetwork]) -> None:
    """Squeeze and excitation: the gate is a sigmoid, of gauge 1, so the gauge of what it multiplies passes through."""
    _, report = fold(lively("seresnet18", timesteps=2), torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert not report.kept
    holds = {layer.name: layer.holds for layer in report.layers}
    assert holds["layer1.0.se.fc1"] == "real"


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


def test_training_mode_of_the_original_is_kept(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small").train()
    folded, _ = fold(network)
    assert all(module.training for module in network.modules())
    assert not any(module.training for module in folded.modules())
    assert isinstance(folded.model.act1, TernaryLIF)
