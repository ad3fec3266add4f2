"""Firing rates, entropy and energy against numbers counted by hand from what passed through the layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tspike import SpikingNetwork, zoo
from lightning_tspike.analysis.energy import AC_PICOJOULES, MAC_PICOJOULES, measure_energy
from lightning_tspike.analysis.spikes import entropy, firing_rates
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.network import ternarize


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
