"""Exported files: other programs compute with them what the network computes, and need nothing of this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_tspike as lt
from lightning_tspike.files.weights import decode, encode
from lightning_tspike.inference import ExportError, export
from lightning_tspike.inference.agreement import compare
from lightning_tspike.inference.whole_numbers import whole_number_inputs
from lightning_tspike.network import SpikingNetwork

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
T, K = 3, 4
Build = Callable[..., SpikingNetwork]


class Small(nn.Module):
    """A stem, a shortcut over a layer of spikes, a layer that reads sums of spikes, a classifier of means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 2 * 2, K))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(self.pool(x + self.body(x))))


@pytest.fixture
def small(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> Build:
    def build(model: nn.Module | None = None, **options: Any) -> SpikingNetwork:
        network = lt.ternarize(model or Small(), T, input_size=(2, 10, 10), **options)
        return randomize(network).float()

    return build


def rounded(network: SpikingNetwork, layers: tuple[str, ...]) -> SpikingNetwork:
    """The folded network, the weights of these layers as a file of int8 weights would bring them back."""
    folded, _ = lt.fold(network, merge_bn=True, integer_pools=True)
    state = folded.model.state_dict()
    names = {f"{layer}.weight" for layer in layers}
    coarse = decode(encode({name: state[name] for name in names}, "int8"), Path("file"))
    folded.model.load_state_dict({**state, **coarse})
    return folded


def session(file: Path, **options: Any) -> onnxruntime.InferenceSession:
    chosen = onnxruntime.SessionOptions()
    for name, value in options.items():
        setattr(chosen, name, value)
    return onnxruntime.InferenceSession(file, chosen, providers=["CPUExecutionProvider"])


def run_whole(file: Path, x: Tensor) -> Tensor:
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(x)
    opened = session(file)
    return torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: x.numpy()})[0])


def zeros(batch: int, shape: list[int]) -> Tensor:
    return torch.zeros(shape[0] * batch, *shape[1:])


def run_steps(file: Path, frames: Tensor) -> Tensor:
    """Logits of every step, [T, B, K], state handed from step to step by its names."""
    logits = []
    if file.suffix == ".pt2":
        program = torch.export.load(file)
        module = program.module()
        memories = json.loads(facts_in_pt2(file)["memories"])
        state = {site: zeros(len(frames), shape) for site, shape in memories.items()}
        for frame in frames.unbind(1):
            now, state = module(frame, state)
            logits.append(now)
        return torch.stack(logits)
    opened = session(file)
    names = [x.name for x in opened.get_inputs()]
    assert [y.name for y in opened.get_outputs()] == ["logits", *(f"next_{name}" for name in names[1:])]
    shapes = json.loads(opened.get_modelmeta().custom_metadata_map["memories"])
    memory = {f"memory.{site}": zeros(len(frames), shape).numpy() for site, shape in shapes.items()}
    for frame in frames.unbind(1):
        now, *after = opened.run(None, {"frame": frame.numpy(), **memory})
        memory = dict(zip(memory, after, strict=True))
        logits.append(torch.from_numpy(now))
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("format", "int8", "step"),
    [
        ("onnx", False, False),
        ("onnx", True, False),
        ("onnx", True, True),
        ("pt2", True, False),
        ("pt2", False, True),
        pytest.param("onnx", False, True, marks=pytest.mark.slow),
        pytest.param("pt2", False, False, marks=pytest.mark.slow),
        pytest.param("pt2", True, True, marks=pytest.mark.slow),
    ],
)
def test_files_compute_what_the_network_computes(
    small: Build, tmp_path: Path, format: Any, int8: bool, step: bool
) -> None:
    network = small()
    written = export(network, tmp_path / f"net.{format}", format, int8=int8, step=step)
    assert written.size == written.path.stat().st_size
    assert written.rounded == (("body.0", "last.0", "head.1") if int8 else ())
    expected = rounded(network, written.rounded) if int8 else network
    for batch in (1, 5):
        with torch.no_grad():
            if step:
                frames = torch.randn(batch, 2 * T, 2, 10, 10)
                wanted, got = expected(frames, per_step=True), run_steps(written.path, frames)
            else:
                images = torch.randn(batch, 2, 10, 10)
                wanted, got = expected(images), run_whole(written.path, images)
        assert wanted.std() > 0.1
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_onnx_runtime_computes_with_integers(small: Build, tmp_path: Path) -> None:
    written = export(small(), tmp_path / "net.onnx", int8=True)
    opened = session(written.path, enable_profiling=True, profile_file_prefix=str(tmp_path / "profile"))
    opened.run(None, {"images": np.zeros((2, 2, 10, 10), np.float32)})
    events = json.loads(Path(opened.end_profiling()).read_text())
    kernels = Counter(e["args"]["op_name"] for e in events if e["name"].endswith("kernel_time"))
    assert (kernels["ConvInteger"], kernels["MatMulInteger"]) == (2, 1)
    assert kernels["Conv"] + kernels["FusedConv"] == 1  # the stem reads pixels
    weights = {tensor.name: tensor for tensor in onnx.load(written.path).graph.initializer}
    assert weights["model.body.0.weight"].data_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize(
    ("neuron", "format", "step"),
    [
        *((neuron, "pt2", False) for neuron in ("ternary_if", "ctsn", "levels")),
        *(
            pytest.param(neuron, "onnx", True, marks=pytest.mark.slow)
            for neuron in ("ternary_if", "binary_lif", "ctsn", "ctsn_events", "levels", "quantized")
        ),
    ],
)
def test_every_neuron(small: Build, tmp_path: Path, neuron: str, format: Any, step: bool) -> None:
    options: dict[str, Any] = {"neuron": neuron, "reset": "soft", "learn_threshold": True}
    if neuron == "ternary_if":
        options = {"neuron": neuron, "amplitude": "channel"}
    elif neuron in ("levels", "quantized"):
        kind = "ternary_lif" if neuron == "levels" else neuron
        options = {"neuron": kind, "levels": 3, "reset": "soft", "threshold": 0.2}
    network = small(**options)
    written = export(network, tmp_path / f"net.{format}", format, step=step)
    frames = torch.randn(4, T, 2, 10, 10)
    with torch.no_grad():
        wanted = network(frames, per_step=True) if step else network(frames[:, 0])
    got = run_steps(written.path, frames) if step else run_whole(written.path, frames[:, 0])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_size_of_images(small: Build, tmp_path: Path) -> None:
    network = small()
    network.model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, K))
    network.pretrained_cfg = {"input_size": (2, 10, 10), "mean": (0.5,), "std": (0.2,)}
    written = export(network, tmp_path / "net.pt2", "pt2", example=torch.randn(1, 2, 16, 16))
    assert json.loads(facts_in_pt2(written.path)["preprocessing"]) == {
        "input_size": [2, 16, 16], "mean": [0.5], "std": [0.2], "interpolation": "bilinear", "crop_pct": 1.0,
    }  # fmt: skip
    assert run_whole(written.path, torch.randn(3, 2, 16, 16)).shape == (3, K)
    assert network.pretrained_cfg["input_size"] == (2, 10, 10)


def test_frames(small: Build, tmp_path: Path) -> None:
    network = small()
    network.pretrained_cfg = {
        "input_size": (2, 10, 10), "mean": (0.0, 0.0), "std": (1.0, 1.0),
        "frames": {"timesteps": T, "slice_by": "time", "sensor_size": [10, 10, 2]},
    }  # fmt: skip
    written = export(network, tmp_path / "net.onnx", name="mine")
    (x,) = session(written.path).get_inputs()
    assert (x.name, x.shape) == ("frames", ["batch", T, 2, 10, 10])
    frames = torch.randn(4, T, 2, 10, 10)
    torch.testing.assert_close(run_whole(written.path, frames), network(frames).detach(), rtol=0, atol=1e-4)
    facts = session(written.path).get_modelmeta().custom_metadata_map
    assert json.loads(facts["preprocessing"])["frames"]["slice_by"] == "time"
    # frames of another number and size, said by an example
    written = export(network, tmp_path / "other.pt2", "pt2", example=torch.randn(1, 5, 2, 10, 10))
    assert json.loads(facts_in_pt2(written.path)["timesteps"]) == 5
    frames = torch.randn(2, 5, 2, 10, 10)
    torch.testing.assert_close(run_whole(written.path, frames), network(frames).detach(), rtol=0, atol=1e-4)


def facts_in_pt2(file: Path) -> dict[str, str]:
    extra = {"facts.json": ""}
    torch.export.load(file, extra_files=extra)
    return {key: json.dumps(value) for key, value in json.loads(extra["facts.json"]).items()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    export(lt.zoo.load("tspike-digits"), path, name="tspike-digits", license="apache-2.0")
    return path


def test_file_is_small_and_clean(digits: Path) -> None:
    model = onnx.load(digits)
    onnx.checker.check_model(model, full_check=True)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == 9
    # per neuron and time step the ten operations of its equations, and nothing for the time steps of a still image
    assert len(model.graph.node) < 7 * 4 * 10 + 50
    assert not kinds.keys() & {"Shape", "Expand", "Tile", "If", "Identity", "Dropout", "BatchNormalization"}
    assert [node.domain for node in model.graph.node] == [""] * len(model.graph.node)
    assert [x.name for x in model.graph.input] == ["images"]
    assert [y.name for y in model.graph.output] == ["logits"]
    assert "model.stages.0.0.conv1.weight" in {tensor.name for tensor in model.graph.initializer}
    contents = digits.read_bytes()
    assert len(contents) < 1.1 * 77_898 * 4  # the network's parameters, and a tenth for the rest
    for trace in (b".py", b"site-packages", str(Path.cwd()).encode()):
        assert trace not in contents


ALONE = """
import sys, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
session.run, run = lambda *args: [logits.append(out) or out for out in run(*args)], session.run
logits = []
label = classify(session, Image.open(sys.argv[2]))
assert not {"torch", "lightning_tspike"} & sys.modules.keys()
facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
print(json.dumps([label, logits[0][0].tolist(), facts]))
"""


def test_file_is_enough_to_classify_an_image(digits: Path, tmp_path: Path) -> None:
    network, transform = lt.zoo.load("tspike-digits"), lt.zoo.transforms("tspike-digits")
    pixels = (load_digits().images[7] * 255 / 16).astype(np.uint8)
    image = Image.fromarray(pixels).resize((20, 26), Image.Resampling.BICUBIC).convert("RGB")
    image.save(tmp_path / "seven.png")
    (code,) = re.findall(r"```python\n(# pip install onnxruntime.*?)```", PAGE.read_text(), flags=re.DOTALL)
    command = [sys.executable, "-c", code + ALONE, str(digits), str(tmp_path / "seven.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    label, logits, facts = json.loads(done.stdout)
    with torch.no_grad():
        expected = network(transform(image)[None])[0]
    assert label == network.pretrained_cfg["label_names"][int(expected.argmax())] == "7"
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)
    assert facts["name"] == "tspike-digits"
    assert facts["timesteps"] == 4
    assert facts["license"] == "apache-2.0"
    assert facts["library"].startswith("lightning-tspike ")
    assert (facts["computes"], facts["weights"]) == ("all time steps", "float32")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"format": "tflite"}, ExportError, "format must be one of onnx, pt2, nir, got 'tflite'"),
        ({"opset": 17}, ExportError, "opset must be a whole number from 18.* got 17"),
        ({"opset": 999}, ExportError, "newest that the installed onnx .* got 999"),
        ({"opset": True}, ExportError, "opset must be a whole number"),
        ({"format": "pt2", "opset": 18}, ExportError, "opset=18 is a version of ONNX's operators: leave it out"),
        ({"format": "nir", "int8": True}, ExportError, "format nir has no int8"),
        ({"format": "nir", "step": True}, ExportError, "format nir has no step"),
        ({"path": "nowhere/net.onnx"}, FileNotFoundError, "there is no folder"),
        ({"path": "."}, IsADirectoryError, "is a folder"),
        ({"path": "there.onnx"}, FileExistsError, "exists already: say --overwrite"),
    ],
)
def test_options_are_checked(
    small: Build, tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(kind, match=message):
        export(small(), **{**options, "path": tmp_path / options.get("path", "net.onnx")})
    assert (tmp_path / "there.onnx").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["there.onnx"]


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("nir", "nirtorch")])
def test_missing_packages(
    small: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}: pip install 'lightning-tspike\[export\]'"):
        export(small(), tmp_path / f"net.{format}", format)


class Rows(nn.Module):
    """Makes a row of the batch of each pixel, so that the memories of its second neurons are so many times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(4, K), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.first(x).flatten(2).transpose(1, 2)  # [B, 64, 4]
        return self.second(pixels.reshape(-1, 4)).view(pixels.shape[0], 64, K).mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_memories_with_rows_of_their_own(small: Build, tmp_path: Path, format: Any) -> None:
    network = small(Rows())
    written = export(network, tmp_path / f"net.{format}", format, step=True)
    frames = torch.randn(5, T, 2, 10, 10)
    wanted = network(frames, per_step=True).detach()
    torch.testing.assert_close(run_steps(written.path, frames), wanted, rtol=0, atol=1e-5)


class Forgotten(Small):
    """ONNX's exporter forgets this divisor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.avg_pool2d(self.stem(x), 2, divisor_override=1)))


class Unknown(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.special.bessel_j0(x))


def test_file_that_deviates_is_not_kept(small: Build, tmp_path: Path) -> None:
    network = small(Forgotten())
    with pytest.raises(ExportError, match=r"logits deviate .* on 20 of 20 inputs, by up to .* it was not kept"):
        export(network, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="bessel_j0"):
        export(small(Unknown()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_comparison(small: Build) -> None:
    network = small()

    def run(change: Callable[[Tensor], Tensor]) -> Any:
        with torch.no_grad():
            return compare(network, lambda x: change(network(x)), (2, 10, 10), per_step=False)

    assert run(lambda logits: logits).deviation == 0
    assert run(lambda logits: logits * (1 + 1e-6)).agreeing == 4
    for wrong in (
        lambda logits: logits * 1.001,
        lambda logits: logits.flip(0),  # images mixed up: the one that is alone in its batch is right
        lambda logits: logits[:, :2],
        lambda logits: 1 / 0,
    ):
        with pytest.raises(ExportError):
            run(wrong)


def test_layers_that_read_whole_numbers(small: Build) -> None:
    network = small(freeze_cancelled=False)
    graph_of = lambda net: (net.trace(torch.zeros(1, 2, 10, 10)), net.model)  # noqa: E731
    assert whole_number_inputs(*graph_of(network)) == {}  # amplitudes are not folded yet
    folded, _ = lt.fold(network)
    assert whole_number_inputs(*graph_of(folded)) == {"body.0": (-1, 1), "head.1": (-1, 1)}
    summed, report = lt.fold(network, integer_pools=True)
    bounds = whole_number_inputs(*graph_of(summed))
    assert bounds == {"body.0": (-1, 1), "last.0": (-8, 8), "head.1": (-1, 1)}  # sums of four sums of two
    assert {layer.name for layer in report.layers if layer.holds != "real"} == bounds.keys()
    binary, _ = lt.fold(small(neuron="binary_lif"))
    assert whole_number_inputs(*graph_of(binary)) == {"body.0": (0, 1), "head.1": (0, 1)}


def test_command(tspike: Callable[..., Any], tmp_path: Path) -> None:
    done = tspike("export", "tspike-digits", "--format", "pt2", "--step", "--int8", "--timesteps", "6")
    assert done.status is None, done.stderr
    assert "written: tspike-digits.int8.step.pt2 (" in done.stdout
    assert "within" in done.stdout
    assert "int8 weights: 8 layers" in done.stdout
    facts = facts_in_pt2(tmp_path / "tspike-digits.int8.step.pt2")
    assert json.loads(facts["timesteps"]) == 6
    assert json.loads(facts["license"]) == "apache-2.0"
    assert json.loads(facts["computes"]) == "one time step"
    again = tspike("export", "tspike-digits", "--format", "pt2", "--step", "--int8")
    assert again.status == 1 or "exists already: say --overwrite" in again.stderr


EXTRA = "{'onnx', 'onnxscript', 'nir', 'nirtorch'} & sys.modules.keys()"


@pytest.mark.parametrize(
    "code",
    [
        "import lightning_tspike; from lightning_tspike.cli.main import main; main(['--help'])",
        pytest.param("from lightning_tspike.inference import export", marks=pytest.mark.slow),
    ],
)
def test_nothing_of_the_extra_is_imported_before_it_is_needed(code: str) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print({EXTRA})); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
