"""What a training step keeps: the same gradients from less memory."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_tspike import kernels
from lightning_tspike._observe import observing
from lightning_tspike.memory.kept import kept_bytes
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork, ternarize


@pytest.mark.parametrize("neuron", ["ternary_if", "quantized"])
@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_gradients_of_several_levels_are_the_same(neuron: str, memory: Any) -> None:
    config = NetworkConfig(
        "tspike_resnet_small", 10, timesteps=2, neuron=neuron, levels=3, reset="soft", amplitude="channel",
        threshold=0.2, backbone_kwargs={"widths": [8, 8, 16]},
    )  # fmt: skip
    network = create_network(config)
    x = torch.randn(3, 3, 16, 16)
    with firing_levels(network) as seen:
        network(x)
    assert seen == {0, 1, 2, 3}
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            want, got = _step(network, x, "full"), _step(network, x, memory)
        for name in want:
            torch.testing.assert_close(got[name], want[name], msg=lambda m, name=name: f"{name}: {m}")


@contextmanager
def firing_levels(network: SpikingNetwork) -> Iterator[set[int]]:
    """The levels that a network's neurons send."""
    seen: set[int] = set()

    def look(_name: str, neuron: Any, _x: torch.Tensor, spikes: torch.Tensor) -> None:
        amplitude = torch.as_tensor(neuron.amplitude).reshape(-1, 1, 1)
        seen.update((spikes / amplitude).round().abs().int().unique().tolist())

    with torch.no_grad(), observing(network.neurons(), look):
        yield seen


def _step(network: SpikingNetwork, x: torch.Tensor, memory: Any) -> dict[str, torch.Tensor]:
    """Logits, gradients and buffers after one training step."""
    network = copy.deepcopy(network)
    network.memory = memory
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    logits = network(x)
    logits.square().sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert gradients
    return {"logits": logits, "gradient of x": x.grad, **gradients, **dict(network.named_buffers())}


NETWORKS = {
    "tspike_resnet_small": {},
    "tspike_vgg_small": {},
    "tspike_sew_resnet18": {"layers": [1, 1], "widths": [8, 16]},
    "tspike_ms_resnet18": {"layers": [1, 1], "widths": [8, 16]},
    "tspike_max_resnet18": {"layers": [1, 1], "widths": [8, 16]},
    "resnet18": {},
    "regnety_002": {},
    "mobilenetv3_small_050": {"drop_rate": 0.2, "drop_path_rate": 0.2},
}


@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_gradients_are_the_same(backbone: str, amplitude: Any) -> None:
    config = NetworkConfig(backbone, 10, timesteps=2, amplitude=amplitude, backbone_kwargs=NETWORKS[backbone])
    network = create_network(config).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    results = {memory: _step(network, x, memory) for memory in ("full", "packed", "lean")}
    for memory in ("packed", "lean"):
        assert results[memory].keys() == results["full"].keys()
        for name, want in results["full"].items():
            torch.testing.assert_close(results[memory][name], want, rtol=1e-12, atol=1e-12, msg=f"{memory}: {name}")


@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_autocast(memory: Any) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", 10, timesteps=2))
    x = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = _step(network, x, "full"), _step(network, x, memory)
    for name in want:
        torch.testing.assert_close(got[name], want[name], msg=lambda m, name=name: f"{name}: {m}")


def test_frozen_layers_and_frames() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", 10, timesteps=2)).double()
    for p in network.model.stages[0].parameters():
        p.requires_grad_(False)
    network.model.conv1.requires_grad_(False)
    network.model.bn1.requires_grad_(False)
    x = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    want, got = _step(network, x, "full"), _step(network, x, "lean")
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-12, msg=name)


class _Kept(nn.Module):
    """A neuron between two linear layers, which writes to its spikes where it is told to."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 10, 1)
        self.writes = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.act(self.first(x))
        if self.writes:
            with torch.no_grad():
                spikes.mul_(3.5)
        return self.second(spikes).mean((2, 3))


@pytest.mark.parametrize("writes", [False, True])
def test_spikes_that_were_written_to_are_not_packed(writes: bool) -> None:
    network = ternarize(_Kept(writes), 2, input_size=(3, 4, 4), amplitude="fixed", freeze_cancelled=False).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    want, got = _step(network, x, "full"), _step(network, x, "packed")
    for name in want:
        assert torch.equal(got[name], want[name]), name


def _kept_bytes(network: SpikingNetwork, x: torch.Tensor) -> int:
    """Bytes that are held after a forward pass and were not before it."""
    network(x).sum().backward()  # what is made once is there
    network.zero_grad()
    return kept_bytes(lambda: network(x).sum(), "cpu")


@pytest.mark.slow
def test_law_of_memory() -> None:
    """Against the plain equations: half with packed spikes and a fifth when lean, linear in T and batch."""
    kept: dict[tuple[str, int, int], int] = {}
    for timesteps, batch in ((2, 4), (4, 4), (4, 8)):
        network = create_network(NetworkConfig("resnet18", 10, timesteps=timesteps))
        x = torch.randn(batch, 3, 64, 64)
        with kernels.use("reference"):
            kept["eager", timesteps, batch] = _kept_bytes(network, x)
        for memory in ("full", "packed", "lean"):
            network.memory = memory
            kept[memory, timesteps, batch] = _kept_bytes(network, x)
    eager = kept["eager", 4, 8]
    assert kept["full", 4, 8] < 0.7 * eager
    assert kept["packed", 4, 8] < 0.5 * eager
    assert kept["lean", 4, 8] < 0.2 * eager
    for memory in ("full", "packed", "lean"):
        assert kept[memory, 4, 8] < 2.1 * kept[memory, 4, 4]
        assert kept[memory, 4, 4] < 2.1 * kept[memory, 2, 4]


def test_bad_memory_of_a_network() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", 10))
    with pytest.raises(ValueError, match="'small'"):
        network.memory = "small"
    assert network.memory == "full"


def test_weights_that_were_changed_before_backward_are_refused() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", 10, timesteps=2))
    network.memory = "lean"
    loss = network(torch.randn(2, 3, 16, 16)).sum()
    with torch.no_grad():
        for p in network.model.stages[1].parameters():
            p.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_left_behind_by_an_error() -> None:
    """A forward pass that fails in the middle of a lean block."""
    network = create_network(NetworkConfig("tspike_resnet_small", 10, timesteps=2))
    network.memory = "lean"
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 3, 16, 16, dtype=torch.complex64))
    hook = network.model.stages[1][0].conv2.register_forward_pre_hook(lambda _m, args: (args[0][:, :3],))
    with pytest.raises(RuntimeError):
        network(x)
    hook.remove()
    assert not [name for name, module in network.named_modules() if module._forward_hooks]
    network(x).sum().backward()
    network.memory = "full"
    assert not [name for name, module in network.named_modules() if "forward" in vars(module)]


class _Block(nn.Module):
    """A block of layers that gives a pair, of its spikes and of how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        spikes = self.act(scale * self.conv(x))
        return spikes, spikes.abs().mean()


class _Odd(nn.Module):
    """Blocks that give pairs, are called twice, share a layer with the stem, or begin by writing to their input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.pairs = _Block()
        self.shared = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), self.norm, self.act, nn.Dropout(0.3))
        self.writing = nn.Sequential(nn.Dropout(0.3, inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        x, rate = self.pairs(x, scale=2.0)
        x, again = self.pairs(x)
        return self.fc(self.writing(self.shared(x)).mean((2, 3))) * (1 + rate + again)


def _odd(timesteps: int = 3) -> tuple[SpikingNetwork, torch.Tensor]:
    network = ternarize(_Odd(), timesteps, input_size=(3, 8, 8), freeze_cancelled=False).double()
    return network, torch.randn(4, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_odd_blocks(memory: Any) -> None:
    network, x = _odd()
    want, got = _step(network, x, "full"), _step(network, x, memory)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-12, msg=name)


def test_hooks_on_parameters_are_called_once() -> None:
    network, x = _odd()
    calls: list[str] = []
    for name, parameter in network.named_parameters():
        parameter.register_hook(lambda _grad, name=name: calls.append(name))
    network.memory = "lean"
    network(x).sum().backward()
    assert sorted(calls) == sorted(name for name, _ in network.named_parameters())


def test_images_and_frames_before_one_backward_pass() -> None:
    network, images = _odd()
    frames = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for memory in ("full", "lean"):
        network.memory = memory
        torch.manual_seed(2)
        loss = network(images).square().sum() + network(frames).sum() + network(images, timesteps=2).sum()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_with_checkpointing_of_timm(memory: Any) -> None:
    network = create_network(NetworkConfig("resnet18", 10, timesteps=2)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    want = _step(network, x, "full")
    network.model.set_grad_checkpointing()
    got = _step(network, x, memory)
    # timm's checkpoints move running statistics twice, whoever keeps what
    for name in (name for name in want if "running" not in name and "num_batches" not in name):
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-12, msg=name)


def test_lean_refuses_what_would_be_computed_otherwise() -> None:
    network, x = _odd()
    network.memory = "lean"
    loss = network(x).sum()
    network.eval()
    with pytest.raises(RuntimeError, match=r"train\(\) or eval\(\) was called in between"):
        loss.backward()
    other = {name: (2 * p.detach()).requires_grad_() for name, p in network.named_parameters()}
    loss = torch.func.functional_call(network.train(), other, (x,)).sum()
    with pytest.raises(RuntimeError, match="their parameters are other ones now"):
        loss.backward()


def test_packed_refuses_weights_that_were_changed() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", 10, timesteps=2))
    network.memory = "packed"
    loss = network(torch.randn(2, 3, 16, 16)).sum()
    with torch.no_grad():
        network.model.stages[1][0].conv2.weight.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_lean_leaves_the_network_as_it_is(tmp_path: Path) -> None:
    """Names, weights' keys, a ``forward`` that somebody has set; and it goes with copies and pickled files."""
    network, x = _odd()
    own = network.model.pairs.forward
    network.model.pairs.forward = own
    before = [name for name, _ in network.named_modules()], list(network.state_dict())
    network.memory = "lean"
    assert ([name for name, _ in network.named_modules()], list(network.state_dict())) == before
    want = _kept_bytes(network, x)
    copied = copy.deepcopy(network)
    assert _kept_bytes(copied, x) == want
    del network.model.pairs.forward  # a bound method of its own cannot be pickled with its module
    network.memory = "lean"
    torch.save(network, tmp_path / "network.pt")
    read = torch.load(tmp_path / "network.pt", weights_only=False)
    assert _kept_bytes(read, x) == want
    copied.memory = "full"
    assert vars(copied.model.pairs)["forward"].__self__ is copied.model.pairs
    assert [name for name, m in copied.named_modules() if "forward" in vars(m)] == ["model.pairs"]


def test_lean_is_freed_at_once() -> None:
    """Memory of the device comes back when the last reference to the network is gone, not when Python cleans up."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten(), nn.Linear(64, 2))
    network = ternarize(model, 2, input_size=(3, 4, 4))
    del model
    network.memory = "lean"
    gc.collect()
    conv = weakref.ref(network.model[0])
    gc.disable()
    try:
        del network
        assert conv() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_nothing_is_noted_on_tensors(memory: Any) -> None:
    network, x = _odd()
    network.memory = memory
    noted: list[str] = []
    for neuron in network.neurons().values():
        neuron.register_forward_hook(lambda _module, _args, spikes: noted.extend(vars(spikes)))
    network(x).sum().backward()
    assert not noted


def test_threads_need_not_take_turns_in_lean() -> None:
    """Each waits in the middle of a block for the other one to be there as well."""
    network, x = _odd()
    network.memory = "lean"
    meeting = threading.Barrier(2, timeout=20)

    def meet(*_: Any) -> None:
        meeting.wait()

    hook = network.model.pairs.conv.register_forward_hook(meet)
    failed: list[Exception] = []

    def work() -> None:
        try:
            network(x)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert not failed


def test_lean_runs_as_full_where_it_is_compiled_or_exported() -> None:
    torch.compiler.reset()
    network, x = _odd()
    network.eval().memory = "lean"
    with torch.no_grad():
        want = network(x)
        compiled = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), want)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), want)
