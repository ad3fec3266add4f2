"""The neurons and networks that benchmarks compare with do what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks import rivals
from lightning_tspike.functional import binary_lif, ternary_lif
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig

TERNARY = ["eager", "SpikingJelly TernaryLIFNode"]
BINARY = ["SpikingJelly LIFNode", "snnTorch Leaky", "Norse LIF"]
SHAPE = (5, 2, 3, 8, 8)


def _layer(name: str, timesteps: int = SHAPE[0]) -> rivals.Layer:
    if name != "eager":
        pytest.importorskip(rivals.LIBRARIES[name.split()[0]])
    return rivals.neurons(timesteps)[name]


def _ours(lif: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    return lif(x.flatten(0, 1), len(x)).view_as(x)


def _gradient(spikes: Tensor, x: Tensor) -> Tensor:
    """Of a fixed random mix of the spikes by the currents."""
    weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1)).to(spikes)
    return torch.autograd.grad(spikes, x, weight)[0]


def test_neurons_and_missing_make_up_the_table() -> None:
    libraries = {name.split()[0] for name in rivals.neurons(2)}
    assert libraries | set(rivals.missing()) == {"eager", *rivals.LIBRARIES}
    assert not libraries & set(rivals.missing())
    assert all(f"\n{name} " in str(rivals.__doc__) for name in TERNARY + BINARY)


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    assert rivals.missing() == ["SpikingJelly", "snnTorch", "Norse"]
    assert list(rivals.neurons(2)) == ["eager"]


@pytest.mark.parametrize("name", TERNARY)
def test_ternary_spikes_are_ours_at_the_thresholds_too(name: str) -> None:
    # Multiples of 1/64: all that is computed in five steps is exact, in whatever order it is.
    x = torch.randint(-96, 97, SHAPE) / 64
    x[0, :, 0], x[0, :, 1] = 0.5, -0.5
    spikes = _layer(name)(x)
    assert torch.equal(spikes, _ours(ternary_lif, x))
    assert (spikes[0, :, 0] == 1).all()
    assert (spikes[0, :, 1] == -1).all()
    assert spikes.unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("name", TERNARY + BINARY)
def test_spikes_of_random_currents_are_ours(name: str) -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    spikes = _layer(name)(x)
    assert spikes.shape == x.shape
    assert torch.equal(spikes, _ours(ternary_lif if name in TERNARY else binary_lif, x).to(spikes.dtype))


@pytest.mark.parametrize("name", TERNARY + BINARY)
def test_a_call_knows_nothing_of_the_one_before(name: str) -> None:
    layer, x = _layer(name), torch.randn(SHAPE)
    spikes = layer(x)
    assert torch.equal(layer(x), spikes)
    layer(torch.randn(SHAPE[0], 1, 2))
    assert torch.equal(layer(x), spikes)


@pytest.mark.parametrize("name", TERNARY + BINARY)
def test_gradients_reach_back_in_time(name: str) -> None:
    x = (torch.randn(SHAPE) / 2).requires_grad_()
    spikes = _layer(name)(x)
    gradient = _gradient(spikes, x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert torch.autograd.grad(_layer(name)(x)[-1].sum(), x)[0][0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eager_neurons_are_the_reference(dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    spikes, expected = _layer("eager")(x), _ours(ternary_lif, x)
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(_gradient(spikes, x), _gradient(expected, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amplitude", ["layer", "channel", "fixed"])
@pytest.mark.parametrize("frames", [False, True])
def test_a_plain_network_computes_the_same(amplitude: str, frames: bool) -> None:
    config = NetworkConfig("tspike_resnet_small", num_classes=4, timesteps=3, amplitude=amplitude)  # type: ignore[arg-type]
    network, plain = create_network(config).double(), create_network(config).double()
    rivals.use_eager_neurons(plain)
    with torch.no_grad():
        for neuron in network.neurons().values():
            if neuron.raw_amplitude is not None:
                neuron.raw_amplitude.uniform_(0.5, 1.5)
    plain.load_state_dict(network.state_dict())
    x = torch.randn(2, *((3,) if frames else ()), 3, 16, 16, dtype=torch.float64)
    (first, expected), (second, gradients) = _run(network, x), _run(plain, x)
    assert torch.equal(second, first)
    assert gradients.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max()
        assert (gradients[name] - expected[name]).abs().max() <= 1e-5 * scale, name


def _run(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of their cross entropy with class 1."""
    logits = network(x)
    nn.functional.cross_entropy(logits, torch.ones(len(x), dtype=torch.long)).backward()
    return logits.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_plain_network() -> None:
    network = rivals.use_eager_neurons(create_network(NetworkConfig("tspike_resnet_small", num_classes=7, timesteps=2)))
    assert all(type(neuron) is rivals.EagerTernaryLIF for neuron in network.neurons().values())
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 7)


@pytest.mark.parametrize("change", [{"reset": "soft"}, {"neuron": "binary_lif"}, {"learn_threshold": True}])
def test_neurons_that_cannot_be_eager_are_refused(change: dict[str, object]) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", num_classes=2, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no TernaryLIF with hard reset"):
        rivals.use_eager_neurons(network)


def test_spikingjelly_networks_and_their_memory_optimisation() -> None:
    pytest.importorskip("spikingjelly")
    x = torch.randn(2, 3, 32, 32)
    network = rivals.spiking_resnet18(2)
    logits, expected = _run(network, x)
    assert logits.shape == (2, 1000)
    network.zero_grad()
    assert rivals.memopt(network, torch.zeros_like(x)) is network
    again, gradients = _run(network, x)
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(list(gradients.values()), list(expected.values()))  # names say what is wrapped
    with pytest.raises(RuntimeError, match="CUDA"):
        rivals.memopt(network, x, level=2)


def test_spikingjelly_resnet34_is_ours_in_size() -> None:
    pytest.importorskip("spikingjelly")
    size = sum(p.numel() for p in rivals.spiking_resnet34(2).parameters())
    ours = create_network(NetworkConfig("tspike_resnet34", timesteps=2))
    assert size == sum(p.numel() for name, p in ours.named_parameters() if "amplitude" not in name)
