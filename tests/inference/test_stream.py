"""Streaming: after every frame the decision on all frames so far, and nothing that grows."""

from __future__ import annotations

import gc
import runpy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

import lightning_tspike as lt
from lightning_tspike.inference.integer_network import why_not
from lightning_tspike.network import SpikingNetwork

Build = Callable[..., SpikingNetwork]

ROOT = Path(__file__).resolve().parents[2]
T, B = 6, 2
devices = pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


@devices
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("entry", ["tspike-digits", "tspike-nmnist"])
def test_running_mean(entry: str, folded: bool, device: str) -> None:
    network = lt.zoo.load(entry, folded=folded, device=device, dtype=torch.float64)
    frames = torch.rand(B, T, *network.input_size, dtype=torch.float64, device=device)
    stream = lt.inference.stream(network, batch_size=B)
    assert stream.state is None
    for _ in range(2):  # once more, after a reset
        for t in range(T):
            logits = stream(frames[:, t])
            assert stream.steps == t + 1
            expected = network(frames[:, : t + 1]).detach()
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
            assert not logits.requires_grad
        assert stream.state is not None
        assert any(memory.any() for memory in stream.state.values())
        stream.reset()
        assert stream.steps == 0
        assert stream.state is None


@devices
def test_float32_decides_as_the_batch_does(device: str) -> None:
    """Where no potential comes within rounding of a threshold, spikes are the same in single precision too."""
    network = lt.zoo.load("tspike-digits", device=device)
    digits = lt.data.DigitsDataModule(batch_size=32)
    digits.prepare_data()
    digits.setup("test")
    images, _ = next(iter(digits.test_dataloader()))
    images = images.to(device)
    stream = lt.inference.stream(network, batch_size=len(images))
    for t in range(4):
        logits = stream(images)
        with torch.no_grad():
            expected = network(images, timesteps=t + 1)
        assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.96


@devices
def test_nothing_grows(device: str) -> None:
    network = lt.zoo.load("tspike-digits", device=device)
    stream = lt.inference.stream(network)
    frame = torch.rand(1, 1, 8, 8, device=device, requires_grad=True)

    def tensors() -> tuple[int, int]:
        gc.collect()
        alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        return len(alive), sum(tensor.numel() for tensor in alive)

    counts = []
    for i in range(300):
        logits = stream(frame)
        assert logits.grad_fn is None
        if i in (50, 299):
            counts.append(tensors())
    (before, numbers_before), (after, numbers_after) = counts
    assert after <= before, "what others have left behind may go, nothing may come"
    assert numbers_after <= numbers_before
    assert stream.steps == 300
    assert stream.state is not None
    assert all(memory.grad_fn is None for memory in stream.state.values())


def test_many_frames_in_half_precision() -> None:
    """The mean is not rounded as the logits are: the thousandth frame still counts."""
    network = lt.zoo.load("tspike-digits")
    frames = torch.rand(400, 1, 1, 8, 8)
    exact = lt.inference.stream(network)
    half = lt.inference.stream(lt.zoo.load("tspike-digits", dtype=torch.bfloat16))
    for frame in frames:
        expected, got = exact(frame), half(frame.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


def test_the_pure_function() -> None:
    network = lt.zoo.load("tspike-digits", dtype=torch.float64)
    step = lt.inference.step(network)
    assert step.frame_shape == (1, 8, 8)
    frames = torch.rand(B, T, 1, 8, 8, dtype=torch.float64)
    state, total, stream = step.initial_state(B), 0.0, lt.inference.stream(network, B)
    for t in range(T):
        logits, state = step(frames[:, t], state)
        total = total + logits
        torch.testing.assert_close(stream(frames[:, t]), total.detach() / (t + 1))
    bigger = lt.inference.step(network, torch.rand(1, 1, 16, 16))
    assert bigger.frame_shape == (1, 16, 16)


def test_on_integers() -> None:
    if (missing := why_not()) is not None:
        pytest.skip(f"the integer runtime needs {missing}")
    network = lt.inference.integer(lt.zoo.load("tspike-digits"))
    stream, frames = lt.inference.stream(network, batch_size=B), torch.rand(B, T, 1, 8, 8)
    for t in range(T):
        torch.testing.assert_close(stream(frames[:, t]), network(frames[:, : t + 1]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@devices
def test_compiled(device: str) -> None:
    torch.compiler.reset()
    network = lt.zoo.load("tspike-nmnist", dtype=torch.float64, device=device)
    stream = lt.inference.stream(network, compile=True)
    frames = torch.rand(1, T, *network.input_size, dtype=torch.float64, device=device)
    for t in range(T):
        torch.testing.assert_close(stream(frames[:, t]), network(frames[:, : t + 1]).detach())


def test_what_does_not_fit(lively: Build) -> None:
    network = lively("tspike_vgg_small", num_classes=5, timesteps=T)
    stream = lt.inference.stream(network)
    frame = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"one frame for each of 1 streams, \[1, 3, H, W\], got shape \(3, 16, 16\)"):
        stream(frame[0])
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 16, 16\); a network for another number of channels"):
        stream(frame[:, :1])
    first = stream(frame)
    with pytest.raises(ValueError, match=r"after 1 frames of size \(3, 16, 16\) came one of \(3, 32, 32\): call reset"):
        stream(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"each of 1 streams, \[1, 3, 16, 16\], got shape \(2, 3, 16, 16\)"):
        stream(frame.repeat(2, 1, 1, 1))
    assert stream.steps == 1  # what was refused has changed nothing
    stream.reset()
    stream(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    stream.reset()
    assert torch.equal(stream(frame), first)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        lt.inference.stream(network, 0)
    features = lt.ternarize(timm.create_model("test_resnet", features_only=True), T).eval()
    with pytest.raises(ValueError, match="list of feature maps, of which there is no mean"):
        lt.inference.stream(features)(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"in train mode.*call \.eval\(\)"):
        lt.inference.stream(network.train())


@pytest.fixture(scope="session")
def recording(shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real recording of N-MNIST, of a seven."""
    name = "NMNIST/Test/7/00001.bin"
    with zipfile.ZipFile(shared("data/nmnist_small.zip")) as archive:
        return Path(archive.extract(name, tmp_path_factory.mktemp("events")))


def test_live_stream_of_a_recording(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example sees the frames that the entry was tested on, decides as it does, and says so after each of them."""
    io = pytest.importorskip("tonic.io")
    example = runpy.run_path(str(ROOT / "docs/examples/live_stream.py"))
    events = io.read_mnist_file(str(recording), dtype=pytest.importorskip("tonic.datasets").NMNIST.dtype)
    frames = lt.zoo.transforms("tspike-nmnist")(events)
    window = int(events["t"][-1] - events["t"][0]) // len(frames)
    assert torch.equal(torch.cat(list(example["frames_of"](events, (34, 34, 2), window))), frames)

    assert example["main"]([str(recording)]) == 7
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(frames)
    network = lt.zoo.load("tspike-nmnist")
    for t, line in enumerate(lines[1:], 1):
        probabilities = network(frames[None, :t]).softmax(1)[0]
        assert f"{int(frames[t - 1].sum())} events" in line
        assert f"{network.pretrained_cfg['label_names'][probabilities.argmax()]} ({probabilities.max():.0%})" in line

    assert example["main"]([str(recording), "--frame-ms", "30"]) in range(10)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10
    for words in (["nowhere.bin"], [str(recording), "--frame-ms", "0"], [str(recording), "--network", "tspike-digits"]):
        with pytest.raises(SystemExit):
            example["main"](words)
    assert "tspike-digits is not for frames of equal duration" in capsys.readouterr().err
