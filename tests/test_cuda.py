"""What must hold on a GPU: the numbers of the CPU, in every mode, without waiting for the GPU in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F

from lightning_tspike import TernarySNNModule, kernels, zoo
from lightning_tspike.analysis.run_logs import read_logs
from lightning_tspike.callbacks import (
    AmplitudeLogger,
    EnergyMonitor,
    FiringRateMonitor,
    FoldExport,
    MembraneHistogram,
    PredictionWriter,
)
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.functional import ternary_lif
from lightning_tspike.memory import MEMORY_MODES
from lightning_tspike.network import SpikingNetwork

DEVICE = torch.device("cuda")
SMALL = {"num_classes": 10, "timesteps": 2}

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _one_way_to_compute() -> Iterator[None]:
    """Of the algorithms of a convolution only those that give the same numbers again."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def step(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """Logits and all gradients of one training step, on the CPU."""
    network.train().zero_grad()
    logits = network(x)
    F.cross_entropy(logits, torch.arange(len(x), device=x.device) % logits.shape[1]).backward()
    grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: tensor.detach().cpu() for name, tensor in {"logits": logits, **grads}.items()}


def must_be_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-7) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        scale = tensor.abs().max().clamp_min(1e-6).item()
        torch.testing.assert_close(
            got[name], tensor, rtol=tolerance, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "an amplitude for each layer": ("tspike_resnet_small", {}),
    "for each channel": ("tspike_resnet_small", {"amplitude": "channel", "learn_decay": True, "learn_threshold": True}),
    "soft reset": ("tspike_resnet_small", {"reset": "soft", "surrogate": "arctan"}),
    "binary": ("tspike_resnet_small", {"neuron": "binary_lif", "surrogate": "triangular"}),
    "complemented": ("tspike_resnet_small", {"neuron": "ctsn"}),
    "pools": ("vgg11_bn", {"backbone_kwargs": {"mlp_ratio": 0.02}}),
}


@pytest.mark.parametrize(("backbone", "options"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_training_step_is_the_cpus(
    lively: Callable[..., SpikingNetwork], backbone: str, options: dict[str, Any], memory_format: torch.memory_format
) -> None:
    network = lively(backbone, **SMALL, **options)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    want = step(copy.deepcopy(network), x)
    got = step(network.to(DEVICE, memory_format=memory_format), x.to(DEVICE, memory_format=memory_format))
    must_be_close(got, want)


@pytest.mark.parametrize("way", ["triton", "loops"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_spikes_are_the_equations_on_a_layer_of_usual_size(way: str, dtype: torch.dtype) -> None:
    x = torch.randn(4 * 8, 64, 28, 28, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
    amplitude = torch.linspace(0.3, 1.7, 64, device=DEVICE)
    spikes = []
    for name in ("reference", way):
        with kernels.use(name):
            spikes.append(ternary_lif(x, 4, amplitude, decay=0.3, threshold=0.7, reset="soft"))
    assert torch.equal(*spikes)
    assert spikes[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("timesteps", "neurons"), [(1, 2**31 - 500), (1, 2**31 + 3000), (3, 2**30 + 1)])
def test_more_elements_than_32_bits_count(timesteps: int, neurons: int) -> None:
    if DEVICE.type != "cuda" or torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of a GPU's memory")
    x = torch.zeros(timesteps, neurons, device=DEVICE, dtype=torch.bfloat16)
    x[:, -5000:] = torch.randn(timesteps, 5000, device=DEVICE)
    x.requires_grad_()
    last = x.detach()[:, -5000:].clone().requires_grad_()
    with kernels.use("triton"):
        out = ternary_lif(x, timesteps)
    with kernels.use("reference"):
        want = ternary_lif(last, timesteps)
    assert torch.equal(out[:, -5000:], want)
    assert out[:, :-5000].count_nonzero() == 0
    grad = torch.zeros_like(out)
    grad[:, -5000:] = 1
    out.backward(grad)
    want.sum().backward()
    torch.testing.assert_close(x.grad[:, -5000:], last.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_what_is_kept_does_not_matter(lively: Callable[..., SpikingNetwork], dtype: torch.dtype) -> None:
    network = lively("tspike_resnet_small", **SMALL, amplitude="channel").to(DEVICE)
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    network, x = (network, x) if dtype == torch.float64 else (network.float(), x.float())
    results = {}
    for memory in MEMORY_MODES:
        own = copy.deepcopy(network)
        own.memory = memory
        with torch.autocast(DEVICE.type, dtype, enabled=dtype == torch.bfloat16):
            results[memory] = step(own, x)
    for memory in ("packed", "lean"):
        must_be_close(results[memory], results["full"], 1e-9 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_is_eager(lively: Callable[..., SpikingNetwork], mode: str) -> None:
    """Also where torch.compile replays a recorded graph of kernels, with other images each time."""
    torch._dynamo.reset()
    network = lively("tspike_resnet_small", **SMALL, amplitude="channel", learn_decay=True)
    network = network.to(DEVICE, memory_format=torch.channels_last)
    compiled = copy.deepcopy(network)
    compiled.model.compile(mode=mode)
    for _ in range(4):
        x = torch.randn(4, 3, 32, 32, dtype=torch.float64, device=DEVICE)
        torch.compiler.cudagraph_mark_step_begin()
        must_be_close(step(compiled, x), step(network, x))
    with torch.no_grad():
        got, want = compiled.eval()(x), network.eval()(x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("neuron", ["ternary_lif", "ternary_if", "binary_lif", "ctsn"])
def test_nothing_waits_for_the_gpu(lively: Callable[..., SpikingNetwork], neuron: str, memory: str) -> None:
    options = {} if neuron == "ternary_if" else {"learn_decay": True}
    network = lively("tspike_resnet_small", **SMALL, neuron=neuron, learn_threshold=True, **options).to(DEVICE).train()
    network.memory = memory
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    network(x).sum().backward()  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(x).sum().backward()
        with torch.no_grad():
            network.eval()(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_in_a_recorded_graph_of_kernels(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small", **SMALL).to(DEVICE)
    x, other = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        want = network(other)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            network(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = network(x)
        x.copy_(other)
        graph.replay()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_folded_is_unfolded(lively: Callable[..., SpikingNetwork], amplitude: str) -> None:
    network = lively("tspike_resnet20", **SMALL, amplitude=amplitude).to(DEVICE)
    folded, report = fold(network)
    assert all(p.device.type == DEVICE.type for p in folded.parameters())
    assert not any(neuron.raw_amplitude is not None for neuron in folded.neurons().values())
    assert report.deviation < 1e-9
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-9, atol=1e-9)


def test_a_network_of_the_zoo_decides_as_on_the_cpu() -> None:
    data = DigitsDataModule(batch_size=360)
    data.setup("test")
    images, labels = next(iter(data.test_dataloader()))
    network = zoo.load("tspike-digits", device=DEVICE)
    with torch.no_grad():
        got, want = network(images.to(DEVICE)).cpu().argmax(1), zoo.load("tspike-digits")(images).argmax(1)
    assert (got != want).sum() <= 1  # roundings differ
    assert (got == labels).double().mean() > 0.95


def test_training_in_bfloat16_with_all_callbacks(tmp_path: Path) -> None:
    L.seed_everything(1, verbose=False)
    module, data = TernarySNNModule("tspike_resnet_small", num_classes=10, in_chans=1, timesteps=2), DigitsDataModule()
    watchers = [AmplitudeLogger(5), FiringRateMonitor(5), MembraneHistogram(5), EnergyMonitor(1)]
    checkpoint = ModelCheckpoint(tmp_path, "best", monitor="val/acc1", mode="max")
    trainer = L.Trainer(
        accelerator="gpu" if DEVICE.type == "cuda" else "cpu", devices=1, precision="bf16-mixed", max_epochs=4,
        logger=CSVLogger(tmp_path, name="csv"), enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*watchers, checkpoint, FoldExport("raise"), PredictionWriter()], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.test(module, data, verbose=False)[0]["test/acc1"] > 0.8
    assert len(torch.cat(trainer.predict(module, data))) == 360
    assert Path(trainer.log_dir, "predictions.csv").is_file()
    logs = read_logs(Path(trainer.log_dir))
    names = " ".join(logs.scalars)
    assert all(word in names for word in ("amplitude", "firing_rate", "energy"))
    folded = zoo.load(tmp_path / "best.folded", device=DEVICE)
    assert not any(neuron.raw_amplitude is not None for neuron in folded.neurons().values())
