"""Sub-steps of ternary spikes give what spikes of several levels give, with as many synaptic operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_tspike as lt
from lightning_tspike._observe import observing
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.graph import TraceError
from lightning_tspike.graph.operations import WEIGHTED
from lightning_tspike.inference import SubstepNetwork, integer, substeps
from lightning_tspike.inference.integer_network import why_not
from lightning_tspike.network import SpikingNetwork

from .test_integer import created, exact, whole_images

LEVELS: dict[str, Any] = {"levels": 3, "reset": "soft", "threshold": 0.2}
BACKBONES = {  # and how many layers with weights run once a time step
    "tspike_resnet_small": 1,
    "tspike_vgg_small": 1,
    "tspike_sew_resnet_small": 1,
    "tspike_ms_resnet_small": 3,  # shortcuts carry currents, which two convolutions read behind a norm or pool
}
SLOW = {"resnet18": 1}


def _read(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """What the layers with weights read."""
    layers = {n.removesuffix(".layer"): m for n, m in network.model.named_modules() if isinstance(m, WEIGHTED)}
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), observing(layers, lambda name, _layer, x, _y: seen.update({name: x})):
        network(x)
    return seen


def _sent(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """What the neurons send in a time step."""
    seen: dict[str, Tensor] = {}

    def note(name: str, _neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        seen[name.removesuffix(".neuron")] = spikes

    with torch.no_grad(), observing(network.neurons(), note):
        network(x)
    return seen


@pytest.mark.parametrize(
    ("neuron", "backbone"),
    [
        ("quantized", "tspike_resnet_small"),
        *(("ternary_lif", name) for name in BACKBONES),
        *(pytest.param("ternary_if", name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_same_logits_and_spikes(lively: Callable[..., SpikingNetwork], backbone: str, neuron: str) -> None:
    network = lively(backbone, num_classes=10, timesteps=2, neuron=neuron, **LEVELS)
    folded, _ = lt.fold(network)
    for whole in (network, folded):  # amplitudes that are not folded come through as well
        unfolded = substeps(whole)
        assert isinstance(unfolded, SubstepNetwork)
        assert (unfolded.levels, len(unfolded.once)) == (3, (BACKBONES | SLOW)[backbone])
        for x in (torch.randn(2, 3, 32, 32).double(), torch.randn(2, 3, 3, 32, 32).double()):
            want = whole(x, per_step=True)
            assert (unfolded(x, per_step=True) - want).abs().max() <= 1e-12 * want.abs().max()
            got = _sent(unfolded, x)
            assert all(torch.equal(got[name], spikes) for name, spikes in _sent(whole, x).items())
    assert {0, 1, 2, 3} == {int(s) for spikes in got.values() for s in spikes.abs().unique()}


@pytest.mark.parametrize("backbone", ["tspike_resnet_small", "tspike_vgg_small"])
def test_only_ternary_spikes_and_as_many_operations(lively: Callable[..., SpikingNetwork], backbone: str) -> None:
    """Two accumulates for a spike of level 2: one in each of two sub-steps."""
    folded, _ = lt.fold(lively(backbone, num_classes=10, timesteps=2, **LEVELS), integer_pools=True)
    unfolded = substeps(folded)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    largest = 4 if "vgg" in backbone else 1  # pools that sum four spikes
    reads = _read(unfolded, x)
    inner = [name for name in reads if name not in (*unfolded.once, "fc")]
    assert len(inner) >= 2
    assert all({0, 1} <= set(reads[name].abs().unique().tolist()) <= set(range(largest + 1)) for name in inner)
    want, got = measure_energy(folded, x), measure_energy(unfolded, x)
    assert want.synops > 0
    if largest == 1:
        assert got.synops == pytest.approx(want.synops)
    else:  # in the sum of a pool spikes of both signs cancel, and those of a sub-step are fewer
        assert got.synops >= want.synops


@pytest.mark.skipif(why_not() is not None, reason=f"needs {why_not()}")
def test_three_forms_are_equal_to_the_bit() -> None:
    """Numbers that float32 does not round: levels as they are, in sub-steps, and on integers."""
    folded, _ = lt.fold(exact(created("tspike_resnet_small", 16, **{**LEVELS, "threshold": 0.25})))
    unfolded, fast = substeps(folded), integer(folded)
    for x in (whole_images(3, 3, 16, 16), whole_images(2, 3, 3, 16, 16)):
        with torch.no_grad():
            want = folded(x, per_step=True)
            assert torch.equal(unfolded(x, per_step=True), want)
            torch.testing.assert_close(fast(x, per_step=True), want, rtol=1e-6, atol=1e-6)  # the head rounds
        sent = _sent(unfolded, x)
        assert all(torch.equal(sent[name], spikes) for name, spikes in _sent(folded, x).items())


class _Mixed(nn.Module):
    """Operations that run on each sub-step, and others that need the sum: a max pool on currents, a gate, a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act1 = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.conv, self.norm, self.act2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        spikes = nn.functional.max_pool2d(self.act1(self.stem(x)), 3, 1, 1)
        currents = self.norm(self.conv(nn.functional.pad(spikes, (1, 0, 0, 1))[..., :-1, 1:]))
        y = self.act2(self.pool(currents + 0.5 * spikes) - 0.1)
        y = torch.cat([y[:, :4].relu(), -y[:, 4:]], 1) * torch.sigmoid(y.mean(1, keepdim=True))
        return self.fc(y.mean((2, 3)))


def test_what_is_not_linear_runs_on_the_sum(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    network = randomize(lt.ternarize(_Mixed(), 3, neuron="ternary_if", input_size=(3, 8, 8), **LEVELS))
    unfolded = substeps(network)
    assert unfolded.once == ("stem", "fc")
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(unfolded(x, per_step=True), network(x, per_step=True), rtol=1e-12, atol=1e-12)


class _CountsImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.fc(x.view(x.shape[0], 4, -1).mean(2))


def test_what_it_refuses() -> None:
    with pytest.raises(TraceError, match="does not run in sub-steps"):
        substeps(lt.ternarize(_CountsImages(), 2, input_size=(3, 8, 8), **LEVELS))
    unfolded = substeps(created("tspike_resnet_small", 16, **LEVELS))
    with pytest.raises(TraceError, match="use the network that it was made from"):
        lt.inference.step(unfolded, torch.zeros(1, 3, 16, 16))
