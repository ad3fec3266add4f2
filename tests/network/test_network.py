"""A spiking network is an ordinary module: it can be copied, saved, checkpointed, autocast and compiled."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork

OPTIONS = [{"amplitude": "layer"}, {"amplitude": "channel"}, {"neuron": "ctsn", "learn_decay": True}]
every_kind = pytest.mark.parametrize("options", OPTIONS)


@every_kind
def test_copies_give_the_same(lively: Callable[..., SpikingNetwork], options: dict[str, object]) -> None:
    network = lively("resnet18", num_classes=5, timesteps=2, **options)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = network(x)
    assert torch.equal(copy.deepcopy(network)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    fresh = create_network(network.config).double().eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), expected)


@every_kind
def test_activation_checkpointing(lively: Callable[..., SpikingNetwork], options: dict[str, object]) -> None:
    network = lively("tspike_resnet_small", num_classes=5, timesteps=2, **options)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    network(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    checkpoint(network, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, expected[name]) for name, p in network.named_parameters())


def test_gradients_of_a_network_in_blocks_under_checkpointing(lively: Callable[..., SpikingNetwork]) -> None:
    """timm's own switch, which checkpoints each block."""
    network = lively("resnet18", num_classes=5, timesteps=2).train()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    network(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    network.model.set_grad_checkpointing()
    network(x).square().sum().backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_autocast_integrates_in_single_precision() -> None:
    """Convolutions in bfloat16, membranes in float32: every neuron fires as its float32 membrane potential says."""
    network = create_network(NetworkConfig("tspike_resnet_small", num_classes=5, timesteps=4)).eval()
    seen = []

    def look(neuron, args, spikes) -> None:  # noqa: ANN001
        u = neuron.membrane_potential(args[0])
        assert u.dtype == torch.float32
        assert torch.equal(u.abs() >= neuron.threshold, spikes != 0)
        seen.append((args[0].dtype, spikes.dtype))

    for neuron in network.neurons().values():
        neuron.register_forward_hook(look)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(2, 3, 16, 16))
        logits.float().square().sum().backward()
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert len(seen) == 7
    learned = [n.raw_amplitude for n in network.neurons().values() if n.raw_amplitude is not None]
    assert all(p.grad.dtype == torch.float32 and p.grad != 0 for p in learned)


def test_channels_last(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small", num_classes=5, timesteps=3, amplitude="channel")
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = network(x, per_step=True)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x.to(memory_format=torch.channels_last), per_step=True), expected)


@pytest.mark.parametrize(
    ("backbone", "as_frames", "options"),
    [
        pytest.param("resnet18", False, OPTIONS[0], marks=pytest.mark.slow),
        ("tspike_resnet_small", True, OPTIONS[1]),
        pytest.param("tspike_resnet_small", False, OPTIONS[2], marks=pytest.mark.slow),
    ],
)
def test_whole_graph_is_captured(
    lively: Callable[..., SpikingNetwork], backbone: str, as_frames: bool, options: dict[str, object]
) -> None:
    """fullgraph: an error at the first break. Nothing is generated here, so no compiler is needed."""
    torch.compiler.reset()
    network = lively(backbone, num_classes=5, timesteps=2, **options).train()
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, *([2] if as_frames else []), 3, 32, 32, dtype=torch.float64)
    _check_same(compiled, network, x)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(lively: Callable[..., SpikingNetwork]) -> None:
    torch.compiler.reset()
    network = lively("tspike_resnet_small", num_classes=5, timesteps=2)
    _check_same(torch.compile(copy.deepcopy(network), fullgraph=True), network, torch.randn(2, 3, 32, 32).double())


def _check_same(compiled: torch.nn.Module, network: SpikingNetwork, x: torch.Tensor) -> None:
    expected, got = network(x), compiled(x)
    torch.testing.assert_close(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for name, p in compiled.named_parameters():
        want = gradients[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(p.grad, want, rtol=1e-6, atol=1e-8 * want.abs().max().item(), msg=name)
