"""Firing rates, entropy and energy against numbers counted by hand from what passed through the layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tspike import SpikingNetwork, zoo
from lightning_tspike.analysis.accounting import ACCOUNTINGS, Accounting
from lightning_tspike.analysis.energy import AC_PICOJOULES, MAC_PICOJOULES, EnergyReport, measure_energy
from lightning_tspike.analysis.spikes import entropy, firing_rates
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, ternarize


def test_firing_rates_by_sign_and_time_step(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small", in_chans=1, timesteps=3)
    seen: list[Tensor] = []
    network.model.act1.register_forward_hook(lambda _m, _a, out: seen.append(out.unflatten(0, (3, -1))))
    with firing_rates(network) as rates, torch.no_grad():
        network(torch.randn(4, 1, 8, 8).double())
        network(torch.randn(2, 1, 8, 8).double())
    rate = rates["act1"]
    spikes = torch.cat(seen, 1).flatten(1)  # [T, everything]
    for t in range(3):
        assert rate.positive_by_step[t] == pytest.approx((spikes[t] > 0).double().mean().item())
        assert rate.negative_by_step[t] == pytest.approx((spikes[t] < 0).double().mean().item())
    assert rate.positive == pytest.approx((spikes > 0).double().mean().item())
    assert rate.total == pytest.approx((spikes != 0).double().mean().item())
    assert len({rate.positive_by_step, rate.negative_by_step}) == 2
    shares = [(spikes.sign() == sign).double().mean().item() for sign in (-1, 0, 1)]
    assert rate.entropy == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert rate.unsigned_entropy == pytest.approx(-sum(p * math.log2(p) for p in (shares[1], 1 - shares[1])))
    assert rate.unsigned_entropy < rate.entropy < math.log2(3)


def test_entropy() -> None:
    assert entropy(1 / 3, 1 / 3, 1 / 3) == pytest.approx(math.log2(3))
    assert entropy(0.5, 0.5, 0) == 1
    assert entropy(0, 1) == 0


def first_only(seen: dict[str, Any]) -> Callable[[str, Any], None]:
    """Keeps what is shown first: the network runs a second time for the ANN's numbers."""

    def keep(name: str, value: Any) -> None:
        seen.setdefault(name, value)

    return keep


def test_a_network_counted_on_paper() -> None:
    """Linear layers alone: every spike goes through each of its synapses, one by one."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    network, _ = fold(ternarize(model, 3, input_size=(1, 2, 3)))
    images = 2 * torch.randn(7, 1, 2, 3)
    seen: dict[str, Tensor] = {}
    keep = first_only(seen)
    for name in ("2", "4"):
        network.model.get_submodule(name).register_forward_hook(lambda _m, _a, y, name=name: keep(name, y))
    report = measure_energy(network, images)
    expected = [seen[name].count_nonzero().item() * fan_out / 7 for name, fan_out in (("2", 4), ("4", 3))]
    assert all(count > 0 for count in expected)
    first, *others = report.layers
    assert (first.macs, first.synops, first.ann_macs) == (30, 0, 30)  # the image is seen once, not three times
    assert [layer.synops for layer in others] == pytest.approx(expected)
    assert [(layer.macs, layer.ann_macs) for layer in others] == [(0, 20), (0, 12)]
    assert report.total_picojoules == pytest.approx(30 * 4.6 + sum(expected) * 0.9)
    assert report.ann_picojoules == pytest.approx(62 * 4.6)
    assert measure_energy(network, images, ac_picojoules=0.1).total_picojoules < report.total_picojoules


@pytest.mark.parametrize(
    ("flops", "sops", "signs", "microjoules"), [(3.54, 71.20, 0.11, "50.14"), (3.54, 79.21, 0.23, "51.20")]
)
def test_table_5_of_the_paper(flops: float, sops: float, signs: float, microjoules: str) -> None:
    """Binary and ternary ResNet-20, counts in millions; a multiply-accumulate is two FLOPs."""
    assert f"{ACCOUNTINGS['paper'].picojoules(flops / 2, sops, signs):.2f}" == microjoules


def test_the_papers_first_layer_and_neurons() -> None:
    """Its ResNet-20: 3.54 M FLOPs in the first layer; each neuron compares with each of its thresholds at each step."""
    for neuron, comparisons in (("binary_lif", 1), ("ternary_lif", 2)):
        network = create_network(NetworkConfig("tspike_resnet20", 10, timesteps=2, neuron=neuron))
        report = measure_energy(network, torch.randn(1, 3, 32, 32), "paper")
        assert f"{2 * report.layers[0].macs / 1e6:.2f}" == "3.54"
        stem, stages = 3 * 64 * 32 * 32, 4 * (64 * 16 * 16 + 128 * 8 * 8 + 256 * 4 * 4 + 512 * 2 * 2)
        assert report.signs == comparisons * 2 * (stem + stages)


def test_neurons_of_several_levels_compare_with_more_thresholds() -> None:
    signs = {}
    for levels in (1, 3):
        options = {"levels": levels, "reset": "soft", "timesteps": 2}
        network = create_network(NetworkConfig("tspike_vgg_small", 10, **options))
        signs[levels] = measure_energy(network, torch.randn(1, 3, 16, 16)).signs
    assert signs[3] == 3 * signs[1] > 0


def test_energy_by_name(lively: Callable[..., SpikingNetwork]) -> None:
    network = fold(lively("tspike_resnet_small", in_chans=1, timesteps=2), integer_pools=True)[0]
    images = torch.randn(2, 1, 8, 8).double()
    usual, paper = (measure_energy(network, images, name) for name in ("horowitz", "paper"))
    assert measure_energy(network, images) == usual
    assert (usual.layers, usual.signs) == (paper.layers, paper.signs)  # the same operations
    assert usual.total_picojoules == pytest.approx(4.6 * usual.macs + 0.9 * usual.synops)
    neurons = 3.7 * paper.signs
    assert paper.total_picojoules == pytest.approx(2 * 12.5 * paper.macs + 0.077 * paper.synops + neurons)
    assert paper.ann_picojoules == pytest.approx(2 * 12.5 * paper.ann_macs)
    assert sum(map(paper.picojoules, paper.layers)) == pytest.approx(paper.total_picojoules - neurons)
    assert "horowitz: 4.6 pJ per MAC, 0.9 pJ per accumulate" in str(usual)
    assert "signs" not in str(usual)
    assert "paper: 25.0 pJ per MAC, 0.077 pJ per accumulate, 3.7 pJ per sign" in str(paper)
    assert f"{paper.signs:,.0f} signs" in str(paper)


def test_constants_of_ones_own(lively: Callable[..., SpikingNetwork]) -> None:
    network = fold(lively("tspike_resnet_small", in_chans=1, timesteps=2))[0]
    images = torch.randn(2, 1, 8, 8).double()
    own = Accounting(mac_picojoules=3, ac_picojoules=0.1, sign_picojoules=0.02)
    report = measure_energy(network, images, own)
    assert report.total_picojoules == pytest.approx(3 * report.macs + 0.1 * report.synops + 0.02 * report.signs)
    assert "own: 3 pJ per MAC" in str(report)
    changed = measure_energy(network, images, "paper", ac_picojoules=0.1)
    assert changed.accounting == Accounting(25.0, 0.1, 3.7)


def test_reports_as_json(lively: Callable[..., SpikingNetwork]) -> None:
    network = fold(lively("tspike_resnet_small", in_chans=1, timesteps=2))[0]
    report = measure_energy(network, torch.randn(2, 1, 8, 8).double(), "paper")
    content = json.loads(json.dumps(report.to_dict()))
    assert content["accounting"] == "paper"
    assert EnergyReport.from_dict(content) == report
    old = {name: content[name] for name in ("layers", "picojoules", "ann_picojoules", "macs", "synops")}
    read = EnergyReport.from_dict({**old, "mac_picojoules": 4.6, "ac_picojoules": 0.9})  # as it was written at first
    assert (read.layers, read.accounting.name, read.signs) == (report.layers, "horowitz", 0)


@torch.no_grad()
def test_convolutions_and_average_pools(lively: Callable[..., SpikingNetwork]) -> None:
    """SynOps = sum of what the layer reads * MACs per number read; pools of spikes are sums after folding."""
    network = lively("tspike_vgg_small", num_classes=5, timesteps=2, backbone_kwargs={"pool": "avg"})
    images = torch.randn(3, 3, 16, 16).double()
    folded, _ = fold(network, integer_pools=True)
    seen: dict[str, tuple[Tensor, Tensor, nn.Module]] = {}
    keep = first_only(seen)
    for name, module in folded.model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda m, a, y, name=name: keep(name, (a[0], y, m)))
    folded(images)
    expected = {}
    for name, (x, y, layer) in seen.items():
        macs = y.numel() * layer.weight[0].numel() / 3
        whole = bool((x == x.round()).all())
        expected[name] = (0.0 if whole else macs, macs * x.abs().mean().item() if whole else 0.0)
    report = measure_energy(folded, images)
    assert {layer.name: pytest.approx((layer.macs, layer.synops)) for layer in report.layers} == expected
    assert max(x.abs().max() for x, _, _ in seen.values() if bool((x == x.round()).all())) > 1  # sums of spikes
    unpooled = measure_energy(fold(network)[0], images)
    assert unpooled.macs > report.macs  # averages of spikes need multiplications


def test_frames_are_seen_one_by_one(lively: Callable[..., SpikingNetwork]) -> None:
    network = fold(lively("tspike_resnet_small", in_chans=2, timesteps=4))[0]
    still = measure_energy(network, torch.randn(2, 2, 8, 8).double())
    frames = torch.randn(2, 4, 2, 8, 8).double()
    moving = measure_energy(network, frames)
    assert moving.layers[0].macs == 4 * still.layers[0].macs
    assert moving.ann_picojoules == 4 * still.ann_picojoules
    assert measure_energy(network, frames.round()).layers[0].macs == 0  # events are counts: nothing to multiply


def test_unfolded_amplitudes_cost_multiplications(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small", in_chans=1, timesteps=4)
    report = measure_energy(network, torch.randn(2, 1, 8, 8).double())
    assert report.synops == 0
    assert not network.training


def test_a_trained_network_as_table() -> None:
    data = DigitsDataModule()
    data.setup("test")
    network = zoo.load("tspike-digits")
    report = measure_energy(network, next(iter(data.test_dataloader()))[0])
    text = str(report)
    assert all(layer.name in text for layer in report.layers)
    ratio = report.total_picojoules / report.ann_picojoules
    assert f"{ratio:.3f} times the ANN's" in text
    assert 0 < ratio < 1
    assert (report.mac_picojoules, report.ac_picojoules) == (MAC_PICOJOULES, AC_PICOJOULES) == (4.6, 0.9)


def test_bad_arguments() -> None:
    network = zoo.load("tspike-digits")
    with pytest.raises(ValueError, match="energies must be positive, got 4.6 and -1 pJ"):
        measure_energy(network, torch.zeros(1, 1, 8, 8), ac_picojoules=-1)
    with pytest.raises(ValueError, match="on images, got none"):
        measure_energy(network, torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match="accounting must be one of 'horowitz', 'paper' or an Accounting, got 'loihi'"):
        measure_energy(network, torch.zeros(1, 1, 8, 8), "loihi")
    with pytest.raises(ValueError, match="energies must be positive, got nan and 0.9 pJ"):
        Accounting(mac_picojoules=float("nan"))
    with pytest.raises(ValueError, match="sign_picojoules must be at least 0 pJ, got -1"):
        Accounting(sign_picojoules=-1)
