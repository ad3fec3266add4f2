"""What a call is about (time steps, still images or frames) is known to its layers, whoever else uses the network."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_tspike import TernarySNNModule
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork, ternarize
from lightning_tspike.store.checkpoint import read_checkpoint
from lightning_tspike.store.folder import read_folder, write_folder

Build = Callable[..., SpikingNetwork]


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def _side_by_side(work: Callable[[torch.Tensor], Any], inputs: list[torch.Tensor]) -> list[Any]:
    """What ``work`` gives for each input, or the error it ends with, each in a thread of its own."""
    results: list[Any] = [None] * len(inputs)

    def run(i: int) -> None:
        try:
            results[i] = work(inputs[i])
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, frames for four and frames for two time steps, all of them eight to the network's layers."""
    shapes = (8, 3, 8, 8), (2, 4, 3, 8, 8), (4, 2, 3, 8, 8)
    images, four, two = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return images, four, two


def test_threads_share_a_network(lively: Build, switching: None) -> None:
    network = lively("tspike_resnet_small", num_classes=5, timesteps=4)
    inputs = list(_inputs())
    with torch.no_grad():
        expected = [network(x) for x in inputs]

    @torch.no_grad()
    def work(x: torch.Tensor) -> list[torch.Tensor]:
        return [network(x) for _ in range(30)]

    for want, got in zip(expected, _side_by_side(work, inputs), strict=True):
        assert not isinstance(got, Exception), got
        assert all(torch.equal(logits, want) for logits in got)


@pytest.mark.parametrize("memory", ["full", "packed", "lean"])
def test_threads_train_a_network(lively: Build, switching: None, memory: Any) -> None:
    """Each takes gradients of its own; statistics of batch norms stand still."""
    network = lively("tspike_vgg_small", num_classes=5, timesteps=4).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    parameters = list(network.parameters())

    def work(x: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        return [torch.autograd.grad(network(x).square().sum(), parameters) for _ in range(3)]

    inputs = list(_inputs())
    expected = [work(x)[0] for x in inputs]
    network.memory = memory
    for want, got in zip(expected, _side_by_side(work, inputs), strict=True):
        assert not isinstance(got, Exception), got
        for gradients in got:
            torch.testing.assert_close(gradients, want, rtol=1e-9, atol=1e-11)
    network.memory = "full"
    assert not [name for name, module in network.named_modules() if "forward" in vars(module)]


def test_network_is_taken_to_other_time_steps(lively: Build, tmp_path: Path) -> None:
    """The setter, one call alone, and frames: all as a network that was built for as many."""
    network = lively("tspike_resnet_small", num_classes=5, timesteps=4)
    longer = (
        create_network(NetworkConfig("tspike_resnet_small", 5, timesteps=8, freeze_cancelled=False)).double().eval()
    )
    longer.load_state_dict(network.state_dict())
    images, frames, _ = _inputs()
    frames = torch.cat([frames, frames], 1)
    want, want_frames, before = longer(images, per_step=True), longer(frames), network(images)
    assert want.shape == (8, 8, 5)
    assert torch.equal(network(images, per_step=True, timesteps=8), want)
    assert torch.equal(network(frames), want_frames)
    assert (network.timesteps, torch.equal(network(images), before)) == (4, True)
    network.timesteps = 8
    assert torch.equal(network(images, per_step=True), want)
    assert torch.equal(copy.deepcopy(network)(images, per_step=True), want)
    folded, _ = fold(network)
    assert (network.config.timesteps, folded.timesteps) == (8, 8)
    read, config = read_folder(write_folder(tmp_path / "net", folded))
    assert config.network.timesteps == 8
    torch.testing.assert_close(read.double()(images), want.mean(0), rtol=1e-4, atol=1e-4)


def test_checkpoint_says_the_time_steps_that_are_in_force(tmp_path: Path) -> None:
    import lightning as L

    module = TernarySNNModule("tspike_resnet_small", 5, timesteps=2, sched="none")
    module.network.timesteps = 3
    data = torch.utils.data.DataLoader([(torch.randn(3, 8, 8), 1), (torch.randn(3, 8, 8), 2)], batch_size=2)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").network.timesteps == 3
    assert TernarySNNModule.load_from_checkpoint(tmp_path / "a.ckpt").network.timesteps == 3


@pytest.mark.parametrize("timesteps", [0, -1, 2.0, True, "4"])
def test_bad_time_steps(timesteps: Any) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", timesteps=4))
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1"):
        network.timesteps = timesteps
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1"):
        network(torch.zeros(1, 3, 8, 8), timesteps=timesteps)
    assert network.timesteps == 4


def test_frames_run_one_time_step_each() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", timesteps=4))
    with pytest.raises(ValueError, match=r"timesteps=4 was asked for, but there are 5 frames .*\(2, 5, 3, 8, 8\)"):
        network(torch.zeros(2, 5, 3, 8, 8), timesteps=4)
    with pytest.raises(ValueError, match=r"frames \[B, T, 3, H, W\], got shape \(2, 0, 3, 8, 8\)"):
        network(torch.zeros(2, 0, 3, 8, 8))


def test_who_looks_sees_the_time_steps_of_each_call(lively: Build) -> None:
    network = lively("tspike_resnet_small", num_classes=5, timesteps=4)
    images, _, frames = _inputs()
    with firing_rates(network) as long, torch.no_grad():
        network(images, timesteps=6)
    with firing_rates(network) as short, torch.no_grad():
        network(frames)
    with firing_rates(network) as both, torch.no_grad():
        network(frames)
        network(images, timesteps=6)
    assert {len(rate.positive_by_step) for rate in long.values()} == {6}
    assert {len(rate.positive_by_step) for rate in short.values()} == {2}
    for name, rate in both.items():
        first, second = short[name].positive_by_step[0], long[name].positive_by_step[0]
        assert rate.positive_by_step[0] == pytest.approx((4 * first + 8 * second) / 12)  # by samples
        assert rate.positive_by_step[5] == long[name].positive_by_step[5]
    assert measure_energy(network, frames).total_picojoules > 0


class _Checkpointed(nn.Module):
    """Checkpoints its static prefix with the first neurons, and all that follows."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.conv, self.act1 = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.conv2, self.act2, self.fc = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 5)
        self.use_reentrant: bool | None = None
        self.choice = use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (self.first, self.second):
            x = part(x) if self.use_reentrant is None else checkpoint(part, x, use_reentrant=self.use_reentrant)
        return x

    def first(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.conv(x))

    def second(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act2(self.conv2(x)).mean((2, 3)))


def _gradients(network: SpikingNetwork, *losses: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(sum(losses), list(network.parameters()), allow_unused=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_inside_of_the_network(use_reentrant: bool) -> None:
    """Layers that a backward pass runs again run as in the forward pass, in whichever thread."""
    network = ternarize(_Checkpointed(use_reentrant), 4, input_size=(3, 8, 8), freeze_cancelled=False).double()
    assert network.encoders == ("act1",)
    images, frames, _ = _inputs()
    images.requires_grad_()
    frames.requires_grad_()
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: network(images).square().sum(),
        lambda: network(images, timesteps=2).square().sum(),
        lambda: network(frames).square().sum(),
    ]
    expected = [_gradients(network, call()) for call in calls]
    network.model.use_reentrant = use_reentrant
    for call, want in zip(calls, expected, strict=True):
        loss = call()
        if use_reentrant:  # knows backward() alone

            def take(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
                network.zero_grad()
                loss.backward()
                return tuple(p.grad for p in network.parameters())
        else:

            def take(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
                return _gradients(network, loss)

        (got,) = _side_by_side(take, [loss])
        assert not isinstance(got, Exception), got
        torch.testing.assert_close(got, want)
        del loss


def test_checkpointing_cannot_tell_images_from_frames() -> None:
    """Both before a backward pass: refused where the first neurons are run again; not so around the network."""
    network = ternarize(_Checkpointed(False), 4, input_size=(3, 8, 8), freeze_cancelled=False).double()
    images, frames, _ = _inputs()
    want = _gradients(network, network(images).sum(), network(frames).square().sum())
    network.model.use_reentrant = False
    loss = network(images).sum() + network(frames).square().sum()
    with pytest.raises(RuntimeError, match=r"cannot tell for which of 2 calls .*call backward\(\) after each"):
        loss.backward()
    del loss
    network.model.use_reentrant = None
    got = _gradients(network, checkpoint(network, images, use_reentrant=False).sum(),
                     checkpoint(network, frames, use_reentrant=False).square().sum())  # fmt: skip
    torch.testing.assert_close(got, want)


SMALL = {"layers": [1], "widths": [4]}


def test_exported_for_frames(lively: Build) -> None:
    network = lively("tspike_vgg11", num_classes=5, timesteps=4, backbone_kwargs=SMALL)
    _, _, x = _inputs()
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))


def test_compiled_for_images_and_frames(lively: Build) -> None:
    """The network as a whole, and its model alone: neither takes one kind of input for another."""
    torch.compiler.reset()
    network = lively("tspike_vgg11", num_classes=5, timesteps=4, backbone_kwargs=SMALL)
    whole = torch.compile(copy.deepcopy(network), fullgraph=True, backend="eager")
    inner = copy.deepcopy(network)
    inner.model.compile(fullgraph=True, backend="eager")
    with torch.no_grad():
        for x in (*_inputs(), *_inputs()):
            expected = network(x)
            torch.testing.assert_close(whole(x), expected)
            torch.testing.assert_close(inner(x), expected)
