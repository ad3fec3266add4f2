"""Any number of time steps, and no more of them than a decision takes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_tspike as lt
from lightning_tspike._observe import observing
from lightning_tspike.inference.integer_network import why_not
from lightning_tspike.network import Decision, SpikingNetwork

Build = Callable[..., SpikingNetwork]

T, B = 4, 12
IMAGES = ["tspike-digits", "tspike-fashion-mnist", "tspike-cifar10"]
devices = pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


def images_for(network: SpikingNetwork, *leading: int, device: str = "cpu") -> Tensor:
    size = network.pretrained_cfg["input_size"]
    return torch.randn(*leading, *size, dtype=torch.float64, device=device)


def expected(logits: Tensor, confidence: float) -> Decision:
    """What should be decided, from the logits [T, B, K] of all time steps, image by image."""
    rows = []
    for image in logits.unbind(1):
        for t in range(1, len(image) + 1):
            probabilities = image[:t].mean(0).softmax(0)
            if probabilities.max() >= confidence:
                break
        rows.append((probabilities.argmax(), probabilities.max(), torch.tensor(t)))
    return Decision(*map(torch.stack, zip(*rows, strict=True)))


def must_agree(got: Decision, want: Decision) -> None:
    assert torch.equal(got.classes, want.classes)
    assert torch.equal(got.steps, want.steps)
    torch.testing.assert_close(got.confidence.double(), want.confidence.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entry", IMAGES)
def test_any_number_of_time_steps(entry: str) -> None:
    """Of images, as many as are asked for; each step is what it is with fewer or more after it."""
    network = lt.zoo.load(entry, dtype=torch.float64)
    images = images_for(network, B)
    with torch.no_grad():
        steps = network(images, per_step=True, timesteps=8)
        for timesteps in (1, network.timesteps, 8):
            torch.testing.assert_close(network(images, timesteps=timesteps), steps[:timesteps].mean(0))
        frames = images[:, None].expand(-1, 5, *images.shape[1:])
        torch.testing.assert_close(network(frames, per_step=True), steps[:5])
    assert not torch.allclose(steps[0], steps[7])


def test_any_number_of_frames() -> None:
    network = lt.zoo.load("tspike-nmnist", dtype=torch.float64)
    frames = images_for(network, 2, 9).abs()
    with torch.no_grad():
        steps = network(frames, per_step=True)
        for length in (1, 3, 9):
            torch.testing.assert_close(network(frames[:, :length]), steps[:length].mean(0))


def test_more_time_steps_on_the_digits() -> None:
    """Twice the time steps of its training cost no accuracy."""
    network, (images, labels) = lt.zoo.load("tspike-digits"), digits()
    with torch.no_grad():
        for timesteps in (2, 4, 8):
            assert (network(images, timesteps=timesteps).argmax(1) == labels).float().mean() > 0.98


def digits() -> tuple[Tensor, Tensor]:
    data = lt.data.DigitsDataModule(batch_size=360)
    data.prepare_data()
    data.setup("test")
    return next(iter(data.test_dataloader()))


@devices
@pytest.mark.parametrize("confidence", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize("options", [{}, {"neuron": "ctsn", "amplitude": "channel"}, {"neuron": "binary_lif"}])
def test_decides_when_it_is_sure(
    lively: Build, options: dict[str, Any], frames: bool, confidence: float, device: str
) -> None:
    network = lively("tspike_vgg_small", num_classes=4, timesteps=T, **options).to(device)
    x = torch.randn(B, *([T] if frames else []), 3, 16, 16, dtype=torch.float64, device=device)
    with torch.no_grad():
        logits = network(x, per_step=True).cpu()
    got = network.classify(x, confidence)
    assert got.steps.device == x.device
    must_agree(Decision(*(values.cpu() for values in vars(got).values())), expected(logits, confidence))
    if confidence == 0:
        assert got.steps.eq(1).all()


def test_images_that_are_sure_leave_the_batch(lively: Build) -> None:
    network = lively("tspike_resnet_small", num_classes=4, timesteps=6)
    x = torch.randn(B, 3, 16, 16, dtype=torch.float64)
    some = network.classify(x, 0.0).confidence.median().item()  # half of them are as sure after the first step
    rows: list[int] = []
    with observing({"conv1": network.model.conv1}, lambda _name, _layer, images, _y: rows.append(len(images))):
        decision = network.classify(x, some)
    assert rows == [int((decision.steps >= t).sum()) for t in range(1, len(rows) + 1)]
    assert rows[0] == B
    assert len(rows) == decision.steps.max()
    assert rows[1] <= B / 2


def test_time_steps_that_are_asked_for(lively: Build) -> None:
    network = lively("tspike_vgg_small", num_classes=4, timesteps=T)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for timesteps in (1, 7):
        with torch.no_grad():
            logits = network(x, per_step=True, timesteps=timesteps)
        decision = network.classify(x, 1.0, timesteps=timesteps)
        assert decision.steps.eq(timesteps).all()
        assert torch.equal(decision.classes, logits.mean(0).argmax(1))
    frames = x[:, None].expand(-1, 9, *x.shape[1:])
    assert network.classify(frames, 1.0).steps.eq(9).all()
    with pytest.raises(ValueError, match="timesteps=4 was asked for, but there are 9 frames"):
        network.classify(frames, timesteps=4)


def test_digits_in_fewer_time_steps() -> None:
    network, (images, labels) = lt.zoo.load("tspike-digits"), digits()
    decision = network.classify(images, 0.8)  # it was trained with smoothed labels, and is seldom surer than 0.9
    assert (decision.classes == labels).float().mean() > 0.98
    assert decision.steps.float().mean() < 1.5
    assert decision.confidence.min() >= 0.8 or decision.steps[decision.confidence < 0.8].eq(4).all()


def test_on_integers() -> None:
    if (missing := why_not()) is not None:
        pytest.skip(f"the integer runtime needs {missing}")
    network, (images, labels) = lt.inference.integer(lt.zoo.load("tspike-digits")), digits()
    decision = network.classify(images, 0.95)
    must_agree(decision, expected(network(images, per_step=True), 0.95))
    assert (decision.classes == labels).float().mean() > 0.98


@pytest.mark.parametrize("change", ["weights", "layer", "size", "dtype", "copy", "pickle"])
def test_after_a_change(lively: Build, change: str) -> None:
    """A network that has classified before is not run as it was."""
    network = lively("tspike_vgg_small", num_classes=4, timesteps=T)
    x = torch.randn(B, 3, 16, 16, dtype=torch.float64)
    network.classify(x)
    if change == "weights":
        network.load_state_dict({k: v * 0.9 for k, v in network.state_dict().items()})
    elif change == "layer":
        network.reset_classifier(6)
    elif change == "size":
        x = torch.randn(B, 3, 32, 32, dtype=torch.float64)
    elif change == "dtype":
        network, x = network.float(), x.float()
    else:
        network = copy.deepcopy(network) if change == "copy" else pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        logits = network(x, per_step=True).double()
    must_agree(network.classify(x, 0.6), expected(logits, 0.6))
    assert not any("tep" in name for name in network.state_dict())


class Patches(nn.Module):
    """An image becomes four rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 6, 6).unfold(3, 6, 6).permute(0, 2, 3, 1, 4, 5).reshape(-1, 1, 6, 6)
        return self.head(self.act(4 * self.conv(patches)).mean((2, 3))).view(-1, 4, 3).mean(1)


def test_images_that_are_several_rows() -> None:
    network = lt.ternarize(Patches(), T, input_size=(1, 12, 12)).double().eval()
    nn.init.normal_(network.model.head.weight, std=4)
    frames = torch.randn(B, T, 1, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        logits = network(frames, per_step=True)
    decision = network.classify(frames, 0.7)
    must_agree(decision, expected(logits, 0.7))
    assert decision.steps.unique().numel() > 1


@pytest.mark.parametrize("confidence", [-0.1, 1.5, float("nan"), True, "0.9"])
def test_no_probability(lively: Build, confidence: Any) -> None:
    network = lively("tspike_vgg_small", num_classes=4, timesteps=T)
    with pytest.raises(ValueError, match=r"confidence must be a probability between 0 and 1, got "):
        network.classify(torch.randn(1, 3, 16, 16), confidence)


def test_what_cannot_be_decided(lively: Build) -> None:
    network = lively("tspike_vgg_small", num_classes=1, timesteps=T)
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="logits .* of two classes or more"):
        network.float().classify(x)
    with pytest.raises(ValueError, match="logits .* of two classes or more"):
        lt.ternarize(timm.create_model("test_resnet", features_only=True), T).eval().classify(x)
    with pytest.raises(ValueError, match="for another number of channels"):
        network.classify(x[:, :1])
    with pytest.raises(ValueError, match=r"in train mode.*call \.eval\(\)"):
        network.train().classify(x)
