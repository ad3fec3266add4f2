"""The speed of a network beside its ANN: what is measured is what the network does, and nothing is left changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_tspike import TernaryLIF, ternarize, zoo
from lightning_tspike._observe import observing
from lightning_tspike.analysis import measure_energy, measure_speed
from lightning_tspike.analysis.runtimes import RUNTIMES, ann_of, prepare
from lightning_tspike.inference.integer_network import why_not
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.neurons import SpikingNeuron

IN_TORCH = ("eager", "channels last")  # what needs no time to be made ready


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a compiler: nothing is compiled, which takes long."""
    create_network(NetworkConfig("tspike_resnet_small", timesteps=2))(torch.zeros(1, 3, 8, 8))  # kernels are loaded
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_spikes_and_operations_are_the_networks(no_compiler: None) -> None:
    network = zoo.load("tspike-digits")
    images = torch.randn(5, 1, 8, 8)
    report = measure_speed(network, images, batch_size=2, rounds=3, runtimes=IN_TORCH, input="five of noise")
    sent: dict[str, torch.Tensor] = {}
    with torch.no_grad(), observing(network.neurons(), lambda name, _n, _x, spikes: sent.update({name: spikes})):
        network(images)
    assert list(report.layers) == list(sent)
    for name, spikes in sent.items():
        layer = report.layers[name]
        assert layer.spikes == pytest.approx(spikes.count_nonzero().item() / 5)
        assert layer.neurons == spikes[0].numel()
        assert layer.firing_rate.total == pytest.approx(spikes.count_nonzero().item() / spikes.numel())
    every = torch.cat([spikes.flatten() for spikes in sent.values()])
    assert report.firing_rate == pytest.approx(every.count_nonzero().item() / every.numel())
    assert report.energy == measure_energy(network, images)
    assert (report.timesteps, report.batch_size, report.samples, report.input_size) == (4, 2, 5, (1, 8, 8))


@pytest.mark.slow
def test_every_runtime_is_timed_or_said_to_be_missing(no_compiler: None) -> None:
    report = measure_speed(zoo.load("tspike-digits"), rounds=3)
    assert {"eager", "channels last"} <= set(report.times)
    assert set(report.ann_times) == {"eager", "channels last"}
    assert "C++ compiler" in report.missing["compiled"]
    assert all(len(times) == 3 and min(times) > 0 for times in (report.times | report.ann_times).values())
    assert report.to_ann(report.ann_times[report.fastest_ann]) == 1
    text = str(report)
    assert "noise" in text
    assert "not measured: compiled: torch.compile needs a C++ compiler" in text
    assert all(name in text for name in ("ANN, eager", "stages.2.0.act2", "channels last", "mean firing rate"))


def test_json_has_what_the_report_has(no_compiler: None) -> None:
    report = measure_speed(zoo.load("tspike-digits"), rounds=2, batch_size=3, runtimes=IN_TORCH)
    found = json.loads(json.dumps(report.to_dict()))
    eager = found["runtimes"]["eager"]
    assert eager["seconds"] == list(report.times["eager"])
    assert eager["images_per_second"] == pytest.approx(3 / eager["median_seconds"])
    assert found["ann"][found["fastest_ann"]]["time_to_ann"] == 1
    assert sum(layer["spikes"] for layer in found["layers"].values()) == pytest.approx(found["spikes"])


def test_the_network_and_the_threads_stay_as_they_were(no_compiler: None) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", timesteps=2, in_chans=1, num_classes=10)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        report = measure_speed(network, torch.randn(2, 1, 8, 8), rounds=1, threads=1, runtimes=IN_TORCH)
        assert report.machine["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.is_contiguous() for p in network.parameters())  # not left in channels last


def test_frames(no_compiler: None) -> None:
    """Noise has the form of what the network was trained on, and the ANN sees every frame."""
    network = zoo.load("tspike-nmnist", timesteps=3)
    report = measure_speed(network, rounds=1, runtimes=IN_TORCH)
    assert (report.timesteps, report.input_size) == (3, (2, 34, 34))
    assert "events" in report.input
    assert report.energy.ann_macs == 3 * measure_energy(network, torch.zeros(1, 1, 2, 34, 34)).ann_macs


def test_the_ann_is_the_same_architecture() -> None:
    named = ann_of(create_network(NetworkConfig("tspike_resnet_small", in_chans=2, num_classes=7)))
    assert named(torch.zeros(1, 2, 8, 8)).shape == (1, 7)
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    network = ternarize(own, 2, input_size=(1, 8, 8))
    ann = ann_of(network)
    assert isinstance(ann[1], nn.ReLU)
    assert isinstance(network.model[1], TernaryLIF)
    for model in (named, ann):
        assert not any(isinstance(module, SpikingNeuron) for module in model.modules())
        assert not model.training


def test_what_cannot_be_measured() -> None:
    network = zoo.load("tspike-digits")
    images = torch.zeros(2, 1, 8, 8)
    for name in ("batch_size", "rounds", "threads"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            measure_speed(network, images, **{name: 0})
    with pytest.raises(ValueError, match="batch of 3 cannot be made of 2 samples"):
        measure_speed(network, images, batch_size=3)
    with pytest.raises(ValueError, match="runtimes must be among eager, channels last, .*; got 'Eager'"):
        measure_speed(network, images, runtimes=["Eager", "eager"])
    with pytest.raises(ValueError, match="in_chans="):
        measure_speed(network, torch.zeros(2, 3, 8, 8))


@pytest.mark.skipif(why_not() is not None, reason="no integer runtime on this machine")
def test_the_integer_runtime_says_what_it_leaves_in_float32() -> None:
    network = zoo.load("tspike-digits")
    runs, _ = prepare({"integer": RUNTIMES["integer"]}, network, torch.randn(3, 1, 8, 8))
    assert isinstance(runs["integer"]().argmax(-1), torch.Tensor)
    assert "operations on integers" in runs["integer"].remark


@pytest.mark.slow  # compiles two networks
def test_compiled() -> None:
    report = measure_speed(zoo.load("tspike-digits"), rounds=1, runtimes=["compiled"])
    assert "compiled" in report.times
    assert "compiled" in report.ann_times
    assert "compiled" not in report.missing
