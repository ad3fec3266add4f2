"""The integer runtime gives what the network gives whose weights are rounded to int8."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_tspike as lt
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.graph.tracing import TraceError
from lightning_tspike.inference import integer as make_integer
from lightning_tspike.inference.integer_layers import LARGEST_BYTE, IntegerConv, IntegerLinear, IntegerNeuron
from lightning_tspike.inference.integer_network import IntegerNetwork, why_not
from lightning_tspike.inference.lowering import LoweringError
from lightning_tspike.kernels import sparse
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork
from lightning_tspike.network.stepping import StepNetwork
from lightning_tspike.neurons import SpikingNeuron

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"needs {why_not()}")


def integer(network: SpikingNetwork) -> IntegerNetwork:
    made = make_integer(network)
    assert isinstance(made, IntegerNetwork)
    return made


def exact(network: SpikingNetwork) -> SpikingNetwork:
    """Numbers with which float32 rounds nothing before the head, so that equal means equal to the last bit.

    Weights are whole numbers up to 127 times a power of two, what norms, amplitudes and thresholds do is a power of
    two or a small multiple of one.
    """
    generator = torch.Generator().manual_seed(3)

    def choice(values: list[float], like: Tensor) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), like.shape, generator=generator)]

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                whole = 2.0 * torch.randint(-63, 64, module.weight.shape, generator=generator)
                whole.flatten(1)[:, 0] = 127
                module.weight.copy_(whole * 2.0 ** -round(torch.tensor(60 * fan_in**0.5).log2().item()))
                if module.bias is not None:
                    module.bias.copy_(choice([-0.25, 0, 0.125], module.bias))
            if isinstance(module, nn.AvgPool2d) and module.kernel_size == 3:
                module.divisor_override = 8
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = 0.0
                assert module.running_mean is not None
                module.running_mean.copy_(choice([-0.25, 0, 0.125], module.running_mean))
                if module.affine:
                    module.weight.copy_(choice([-0.5, 0.5, 1.0], module.weight))
                    module.bias.copy_(choice([-0.25, 0, 0.125], module.bias))
        for neuron in network.neurons().values():
            if neuron.raw_amplitude is not None:
                is_for_layer = len(neuron.raw_amplitude) == 1
                neuron.raw_amplitude.copy_(
                    choice([0.5, 1.0, 2.0] if is_for_layer else [0.5, 1.0], neuron.raw_amplitude)
                )
                if not is_for_layer:
                    neuron.raw_amplitude[::8] = 1.0  # which meets the largest weight
    return network.eval()


def whole_images(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape).float()


def check_equal(network: SpikingNetwork, size: int) -> IntegerNetwork:
    fast = integer(network)
    with torch.no_grad():
        for x in (whole_images(3, 3, size, size), whole_images(2, 3, 3, size, size)):
            want = network(x, per_step=True)
            torch.testing.assert_close(fast(x, per_step=True), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
            assert want.std() > 0
    return fast


def created(backbone: str, size: int, **options: Any) -> SpikingNetwork:
    network = create_network(NetworkConfig(backbone, **{"num_classes": 10, "timesteps": 3, **options}))
    network.input_size = (3, size, size)
    return network


OWN = [
    "tspike_ms_resnet_small", "tspike_max_resnet_small", "tspike_resnet18", "tspike_resnet19", "tspike_resnet20",
    "tspike_sew_resnet_small", "tspike_sew_resnet50", "tspike_vgg_small",
]  # fmt: skip


@pytest.mark.parametrize("backbone", OWN)
def test_own_backbones(backbone: str) -> None:
    fast = check_equal(exact(created(backbone, 32)), 32)
    floats = [name for name, why in fast.runtime.kept.items() if "total" not in name]
    assert len(floats) <= 1 or backbone.startswith(("tspike_ms", "tspike_max")), f"only the first layer: {fast.runtime}"


LARGE = ["vgg11_bn", "densenet121", "regnety_002"]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50d",
        "resnext50_32x4d",
        "regnetx_002",
        *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE),
    ],
)
@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_timms_families(name: str, amplitude: str) -> None:
    if amplitude == "channel" and name not in ("resnet18", "regnety_002"):
        pytest.skip("two of them are enough")
    model = timm.create_model(name, num_classes=10)
    check_equal(exact(lt.ternarize(model, timesteps=3, input_size=(3, 64, 64), amplitude=amplitude)), 64)


@pytest.mark.parametrize("neuron", ["ternary_lif", "ternary_if", "binary_lif", "ctsn"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_every_neuron(neuron: str, reset: Any) -> None:
    network = exact(created("tspike_resnet_small", 16, neuron=neuron, reset=reset, amplitude="fixed"))
    fast = check_equal(network, 16)
    kept = [why for name, why in fast.runtime.kept.items() if "ComplementedTernaryLIF" in why]
    assert bool(kept) == (neuron == "ctsn"), "they have no integer form, and the report says so"
    folded, _ = lt.fold(network)
    check_equal(folded, 16)


@pytest.mark.parametrize("backbone", ["tspike_resnet_small", "tspike_sew_resnet_small", "tspike_vgg_small"])
@pytest.mark.parametrize("neuron", ["ternary_lif", "quantized"])
def test_several_levels(backbone: str, neuron: str) -> None:
    """Exactly equal, as a network and as spikes: no number here is rounded in float32."""
    options: dict[str, Any] = {"levels": 3, "reset": "soft", "threshold": 0.25}
    network = exact(created(backbone, 16, neuron=neuron, **options))
    fast = check_equal(network, 16)
    assert not [why for why in fast.runtime.kept.values() if "neurons" in why], fast.runtime
    folded, _ = lt.fold(network)
    fast = check_equal(folded, 16)
    x = whole_images(3, 3, 16, 16)
    want, got = spikes_of(folded, x), spikes_of(fast, x)
    assert {n.removesuffix(".neuron") for n in got} == want.keys()
    for name, spikes in want.items():
        assert torch.equal(spikes, got.get(f"{name}.neuron", got.get(name)).float() - 3), name
    assert {-3, -2, -1, 0, 1, 2, 3} == {int(s) for spikes in want.values() for s in spikes.unique()}
    frames = whole_images(2, 3, 3, 16, 16)
    step = StepNetwork(fast, frames)
    state, logits = step.initial_state(2), []
    for frame in frames.unbind(1):
        now, state = step(frame, state)
        logits.append(now)
    assert torch.equal(torch.stack(logits), fast(frames, per_step=True))


def spikes_of(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """What the neurons of a network, or of its integer runtime as bytes, send."""
    spikes: dict[str, Tensor] = {}
    layers = {n: m for n, m in network.model.named_modules() if isinstance(m, (SpikingNeuron, IntegerNeuron))}
    layers = {n: m for n, m in layers.items() if not n.endswith(".neuron")}
    hooks = [m.register_forward_hook(lambda _m, _x, out, n=n: spikes.update({n: out})) for n, m in layers.items()]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return spikes


@pytest.mark.parametrize("groups", [1, 16], ids=["dense", "depthwise"])
def test_the_largest_products_add_up_exactly(groups: int) -> None:
    """Also on processors that add up two of them in 16 bits."""
    x = torch.full((2, 16, 9, 9), LARGEST_BYTE, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False)
    weight = torch.full_like(conv.weight, 127.0)
    for zero_point in (0, 1, LARGEST_BYTE // 2):
        layer = IntegerConv(weight, conv, (1, 1), zero_point, LARGEST_BYTE, (9, 9))
        assert torch.equal(layer(x), F.conv2d(x.float() - zero_point, weight, padding=1, groups=groups))
        linear = IntegerLinear(torch.full((7, 16), 127.0), None, zero_point)
        assert torch.equal(linear(x[:, :, 0, 0]), (x[:, :, 0, 0].float() - zero_point) @ torch.full((16, 7), 127.0))


@pytest.mark.parametrize(("levels", "fits"), [(64, True), (65, False)])
def test_spikes_of_many_levels(levels: int, fits: bool) -> None:
    """Layers whose sums could overflow stay in float32, and the report says so; the others are exact."""
    network = exact(created("tspike_resnet_small", 32, levels=levels, reset="soft", threshold=2**-7))
    fast = integer(network)
    assert ("reads bytes above 129" in fast.runtime.kept.values()) != fits
    x = whole_images(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-4)


def test_sums_that_a_signed_byte_cannot_hold_do_not_skip_silence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.AvgPool2d((8, 16)), nn.Conv2d(64, 64, 1), nn.ReLU(),
                          nn.Conv2d(64, 64, 1), nn.Flatten(), nn.Linear(64, 10))  # fmt: skip
    network = lt.ternarize(model, timesteps=2, neuron="binary_lif", input_size=(3, 8, 16), amplitude="fixed")
    fast = integer(exact(network))
    first, second = (fast.model.get_submodule(name) for name in ("3", "5"))
    assert (first.can_be_sparse, second.can_be_sparse) == (False, True)


def test_what_the_report_says() -> None:
    fast = integer(lt.zoo.load("tspike-digits"))
    report = fast.runtime
    assert report.kept == {"conv1": "reads real numbers"}
    weighted = [name for name, m in lt.zoo.load("tspike-digits").model.named_modules() if hasattr(m, "kernel_size")]
    assert {*weighted, "fc"} <= report.layers.keys()
    assert report.weight_bytes < 0.3 * report.float_weight_bytes
    assert "conv1 (reads real numbers)" in str(report)
    assert "integers" in report.details()


def test_digits_are_classified_alike() -> None:
    data = DigitsDataModule(batch_size=360)
    data.prepare_data()
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    network = lt.zoo.load("tspike-digits", precision="int8")
    fast = lt.zoo.load("tspike-digits", precision="int8", runtime="integer")
    assert isinstance(fast, IntegerNetwork)
    with torch.no_grad():
        want, got = network(x).argmax(1), fast(x).argmax(1)
    assert (want == got).float().mean() >= 0.999
    assert abs((got == y).float().mean() - 359 / 360) < 1e-6  # as the card says


def test_any_number_of_time_steps_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lt.zoo.load("tspike-digits")
    fast = integer(network)
    x = torch.rand(7, 1, 8, 8)
    whole = fast(x)
    assert fast(x, timesteps=7).shape == (7, 10)
    assert not torch.equal(fast(x, timesteps=1), whole)
    assert fast(x[:, None].expand(-1, 5, -1, -1, -1), per_step=True).shape == (5, 7, 10)
    monkeypatch.setattr("lightning_tspike.inference.integer_network._CACHE", 1)  # one image at a time
    torch.testing.assert_close(fast(x), whole)
    torch.testing.assert_close(fast(x, per_step=True).mean(0), whole)
    fast.timesteps = 2
    torch.testing.assert_close(fast(x), fast(x, timesteps=2))


def test_a_step_at_a_time_it_is_the_same() -> None:
    fast = integer(lt.zoo.load("tspike-digits"))
    frames = torch.rand(3, 6, 1, 8, 8)
    step = StepNetwork(fast, frames)
    state, logits = step.initial_state(3), []
    with torch.no_grad():
        for frame in frames.unbind(1):
            now, state = step(frame, state)
            logits.append(now)
    assert torch.equal(torch.stack(logits), fast(frames, per_step=True))


def test_copies_and_pickles() -> None:
    fast = integer(lt.zoo.load("tspike-digits"))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), fast(x))


@pytest.mark.slow
def test_torch_compile_takes_it_in_one_piece() -> None:
    fast = integer(lt.zoo.load("tspike-digits"))
    x = torch.rand(3, 1, 8, 8)
    compiled = copy.deepcopy(fast)
    compiled.model.compile(fullgraph=True)
    torch.testing.assert_close(compiled(x), fast(x))


@pytest.mark.skipif(not sparse.is_available(), reason="needs AVX512_VNNI and a C++ compiler")
def test_layers_that_read_little_skip_silence() -> None:
    quiet, busy = (
        exact(lt.ternarize(timm.create_model("resnet18", num_classes=10), timesteps=2, threshold=threshold))
        for threshold in (1.0, 0.25)
    )
    x = whole_images(2, 3, 64, 64)
    for network, skips in ((quiet, True), (busy, False)):
        network.input_size = (3, 64, 64)
        dense, chosen = integer(network), make_integer(network, x)
        assert isinstance(chosen, IntegerNetwork)
        report = chosen.runtime
        assert len(report.active) == 19, "all but the first convolution"
        assert bool(report.sparse) == skips, report.active
        assert torch.equal(dense(x), chosen(x))
        assert ("yes" in report.details()) == skips
        assert "of them skip silence" in str(report)
    again = copy.deepcopy(make_integer(quiet, x))
    assert torch.equal(again(x), integer(quiet)(x))


def test_averages_of_large_maps_are_right() -> None:
    network = exact(created("tspike_resnet_small", 32))
    fast = integer(network)
    x = whole_images(2, 3, 96, 96)  # 24 x 24 spikes do not fit a byte
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-4)


def test_maps_that_a_pool_does_not_divide() -> None:
    model = timm.create_model("resnet50d", num_classes=10)
    fast = integer(exact(lt.ternarize(model, timesteps=2, input_size=(3, 64, 64))))
    with pytest.raises(ValueError, match="maps of 25 x 25, which its windows do not divide"):
        fast(torch.zeros(1, 3, 100, 100))


def test_what_it_refuses() -> None:
    network = lt.zoo.load("tspike-digits")
    with pytest.raises(ValueError, match=r"on the CPU in float32, this one is on cpu in torch.float64: convert"):
        integer(copy.deepcopy(network).double())
    fast = integer(network)
    with pytest.raises(ValueError, match="cannot be moved to meta"):
        fast.to("meta")
    with pytest.raises(ValueError, match=r"cannot be moved to cpu or torch.float64"):
        fast.double()
    with pytest.raises(ValueError, match=r"images \[B, 1, H, W\] or frames"):
        fast(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="runtime must be one of"):
        lt.zoo.load("tspike-digits", runtime="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the integer runtime is for the CPU and float32 inputs"):
        lt.zoo.load("tspike-digits", runtime="integer", dtype=torch.float64)


class _CountsImages(nn.Module):
    """Reshapes by the number of images, as channel shuffles do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        count, channels, height, width = x.shape
        return self.fc(x.view(count, channels, height * width).mean(2))


def test_code_that_counts_images_is_refused() -> None:
    network = lt.ternarize(_CountsImages(), timesteps=2, input_size=(3, 8, 8)).eval()
    with pytest.raises((LoweringError, TraceError), match="for one image alone"):
        integer(network)


@pytest.mark.slow
def test_without_a_compiler_it_runs_in_float32(tmp_path: Path) -> None:
    code = (
        "import warnings, torch, lightning_tspike as lt\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    network = lt.zoo.load('tspike-digits')\n"
        "    x = torch.rand(2, 1, 8, 8)\n"
        "    fast, again = lt.inference.integer(network), lt.inference.integer(network)\n"
        "    assert torch.equal(fast(x), network(x)) and type(fast) is type(network)\n"
        "print(*[w.message for w in said if 'integer runtime' in str(w.message)], sep='\\n')\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "CXX": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "the integer runtime needs a C++ compiler ($CXX, c++, g++, clang++): the network runs in float32 instead"
    ]


def test_classify_on_integers(tspike: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[0] / 16 * 255).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "zero.png")
    done = tspike("classify", "tspike-digits", "zero.png", "--runtime", "integer")
    assert done.status is None, done.stderr
    assert " 0 " in done.stdout
