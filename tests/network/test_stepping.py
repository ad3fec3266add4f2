"""A time step at a time: the same spikes and logits as all time steps at once, whatever the neurons and the network."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_tspike import fold, kernels, ternarize
from lightning_tspike._observe import observing
from lightning_tspike.graph import TraceError
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.network.stepping import StepNetwork
from lightning_tspike.neurons import NEURONS, SpikingNeuron, TernaryLIF

Build = Callable[..., SpikingNetwork]

T, B, C = 5, 2, 3
NEURON_OPTIONS: list[dict[str, Any]] = [
    {},
    {"amplitude": "fixed"},
    {"amplitude": "channel", "reset": "soft"},
    {"learn_decay": True, "learn_threshold": True},
]
WAYS = ["reference", "native", "loops"]  # in which all time steps at once run on a CPU
SLOW = ["tspike_resnet19", "tspike_resnet20_cifar", "resnet18", "vgg11_bn", "densenet121", "regnetx_002", "dla34"]
devices = pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


def neuron_of(kind: str, options: dict[str, Any]) -> SpikingNeuron:
    """A neuron whose learned numbers are not where they start."""
    options = {k: v for k, v in options.items() if kind not in ("ternary_if", "quantized") or k != "learn_decay"}
    neuron = NEURONS[kind](T, channels=C, **options)
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
    return neuron


def run_steps(step: StepNetwork, frames: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Logits [T, B, K], and by neurons the spikes of all steps [T*B, ...], for each place where they are called."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, _layer: Any, _memory: Tensor, output: Any) -> None:
        seen.setdefault(name, []).append(output[0])

    layers = {name: layer for name, layer in step.layers.named_modules() if hasattr(layer, "neuron")}
    state, logits = step.initial_state(len(frames)), []
    with torch.no_grad(), observing(layers, keep):
        for frame in frames.unbind(1):
            now, state = step(frame, state)
            logits.append(now)
    spikes = {}
    for name, parts in seen.items():
        places = len(parts) // len(logits)
        spikes[name] = [torch.cat(parts[place::places]) for place in range(places)]
    return torch.stack(logits), spikes


def run_at_once(network: SpikingNetwork, frames: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    spikes: dict[str, list[Tensor]] = {}
    with torch.no_grad(), observing(network.neurons(), lambda n, _m, _x, out: spikes.setdefault(n, []).append(out)):
        return network(frames, per_step=True), spikes


def must_agree(network: SpikingNetwork, step: StepNetwork, frames: Tensor) -> None:
    """In float64 also the layers between neurons give the same for one frame as for many, bit for bit."""
    logits, spikes = run_steps(step, frames)
    expected, expected_spikes = run_at_once(network, frames)
    assert spikes.keys() == expected_spikes.keys()
    for name, places in expected_spikes.items():
        for got, want in zip(spikes[name], places, strict=True):
            assert torch.equal(got, want), name
            assert want.any(), name
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), list(itertools.product(NEURONS, NEURON_OPTIONS)))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_kind_of_neuron(
    kind: str, options: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format, device: str
) -> None:
    neuron = neuron_of(kind, options).to(device)
    x = (0.7 * torch.randn(T * B, C, 4, 4)).to(device, dtype)
    ways = WAYS if device == "cpu" else ["triton", "reference"]
    for way, has_gradients in [*itertools.product(ways, [False]), ("reference", True)]:
        memory = torch.zeros(B, C, 4, 4, device=device, dtype=torch.promote_types(dtype, torch.float32))
        fired, membranes = [], []
        with kernels.use(way), torch.set_grad_enabled(has_gradients):
            for current in x.to(memory_format=memory_format).chunk(T):
                membranes.append(memory + current)
                spikes, memory = neuron.step(memory, current)
                fired.append(spikes)
            expected = neuron(x)
        assert fired[0].dtype == expected.dtype == dtype
        assert torch.equal(torch.cat(fired), expected), way
        assert torch.equal(torch.cat(membranes), neuron.membrane_potential(x)), way
    assert 0 < expected.count_nonzero() < expected.numel()


@pytest.mark.parametrize("kind", NEURONS)
def test_gradients_through_steps(kind: str) -> None:
    neuron = neuron_of(kind, {"learn_decay": True, "learn_threshold": True, "reset": "soft"}).double()
    x = (0.7 * torch.randn(T * B, C, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(T * B, C, dtype=torch.float64)
    memory, fired = torch.zeros(B, C, dtype=torch.float64), []
    for current in x.chunk(T):
        spikes, memory = neuron.step(memory, current)
        fired.append(spikes)
    inputs = [x, *neuron.parameters()]
    got = torch.autograd.grad((torch.cat(fired) * weight).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((neuron(x) * weight).sum(), inputs))


def test_memory_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"memory has shape \(3, 4\), but the input current \(2, 4\)"):
        TernaryLIF(T).step(torch.zeros(3, 4), torch.zeros(2, 4))


@devices
@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tspike_resnet_small", {}),
        ("tspike_resnet_small", {"neuron": "binary_lif", "reset": "soft"}),
        ("tspike_resnet_small", {"neuron": "ternary_if", "amplitude": "fixed"}),
        ("tspike_vgg_small", {"neuron": "ctsn", "amplitude": "channel"}),
        ("tspike_vgg_small", {"neuron": "ctsn_events", "learn_decay": True, "learn_threshold": True}),
        ("tspike_sew_resnet_small", {"amplitude": "channel"}),
        ("tspike_ms_resnet_small", {"reset": "soft"}),
        ("tspike_max_resnet_small", {}),
        ("test_resnet", {}),
        ("resnest14d", {}),  # its code reads x.shape[0]
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_networks(lively: Build, backbone: str, options: dict[str, Any], device: str) -> None:
    network = lively(backbone, num_classes=5, timesteps=T, **options).to(device)
    frames = torch.randn(B, T, 3, 32, 32, dtype=torch.float64, device=device)
    step = StepNetwork(network, frames)
    must_agree(network, step, frames)
    # the images of a static network, for any number of streams
    images = frames[:1, 0]
    logits, _ = run_steps(step, images[:, None].expand(1, T, *images.shape[1:]))
    torch.testing.assert_close(logits.mean(0), network(images).detach())


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
def test_folded_networks(lively: Build, amplitude: str) -> None:
    network = lively("tspike_resnet_small", num_classes=5, timesteps=T, amplitude=amplitude)
    frames = torch.randn(B, T, 3, 16, 16, dtype=torch.float64)
    folded, _ = fold(network)
    must_agree(folded, StepNetwork(folded, frames), frames)


class Twice(nn.Module):
    """One activation at two places, of different shapes; a constant; the batch's length in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.act = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: float = 0.5) -> Tensor:
        x = self.act(self.conv1(x))
        x = self.act(self.conv2(x) + torch.tensor(0.25, dtype=x.dtype))
        return self.head(x.view(x.shape[0], 6, -1).mean(2)) * scale


def test_each_call_has_a_memory_of_its_own() -> None:
    with pytest.warns(UserWarning, match="called at several places"):
        network = ternarize(Twice(), T, input_size=(1, 8, 8), threshold=0.1).double().eval()
    frames = torch.randn(B, T, 1, 8, 8, dtype=torch.float64)
    step = StepNetwork(network, frames)
    assert step.sites == {"act": (1, 4, 6, 6), "act:2": (1, 6, 4, 4)}
    must_agree(network, step, frames)


def test_vectors_and_feature_maps(lively: Build) -> None:
    perceptron = ternarize(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), T, input_size=(6,)).eval()
    vectors = torch.randn(B, T, 6)
    torch.testing.assert_close(
        run_steps(StepNetwork(perceptron, vectors), vectors)[0], perceptron(vectors, per_step=True).detach()
    )
    backbone = timm.create_model("test_resnet", features_only=True, out_indices=(0, 2))
    features = ternarize(backbone, T).double().eval()
    frames = torch.randn(B, T, 3, 32, 32, dtype=torch.float64)
    step = StepNetwork(features, frames)
    state, expected = step.initial_state(B), features(frames, per_step=True)
    for t in range(T):
        maps, state = step(frames[:, t], state)
        for level, at_once in zip(maps, expected, strict=True):
            torch.testing.assert_close(level, at_once[t])


def test_it_is_pure(lively: Build) -> None:
    """Two streams in turns, and a state that is taken up again, give what each alone gives."""
    network = lively("tspike_resnet_small", num_classes=5, timesteps=T)
    one, other = torch.randn(2, B, T, 3, 16, 16, dtype=torch.float64)
    step = StepNetwork(network, one)
    alone = [run_steps(step, frames)[0] for frames in (one, other)]
    states = [step.initial_state(B), step.initial_state(B)]
    with torch.no_grad():
        for t in range(T):
            for i, frames in enumerate((one, other)):
                before = {site: memory.clone() for site, memory in states[i].items()}
                first = step(frames[:, t], states[i])
                again = step(frames[:, t], states[i])
                assert torch.equal(first[0], again[0])
                assert torch.equal(first[0], alone[i][t])
                assert all(torch.equal(before[site], states[i][site]) for site in before)
                states[i] = first[1]


@pytest.mark.parametrize("make", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))], ids=["copy", "pickle"])
def test_copies(lively: Build, make: Callable[[StepNetwork], StepNetwork]) -> None:
    network = lively("tspike_vgg_small", num_classes=5, timesteps=T)
    frames = torch.randn(B, T, 3, 16, 16, dtype=torch.float64)
    step = StepNetwork(network, frames)
    assert torch.equal(run_steps(make(step), frames)[0], run_steps(step, frames)[0])


def test_other_precisions(lively: Build) -> None:
    """Memories are kept in single precision at least, where the network is; its layers are shared, not copied."""
    network = lively("tspike_resnet_small", num_classes=5, timesteps=T)
    frames = torch.randn(B, T, 3, 16, 16, dtype=torch.float64)
    step = StepNetwork(network, frames)
    for dtype, kept in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        network.to(dtype)
        state = step.initial_state(B)
        logits, after = step(frames[:, 0].to(dtype), state)
        assert logits.dtype == dtype
        assert {memory.dtype for memory in (*state.values(), *after.values())} == {kept}


def test_compiled_and_exported(lively: Build) -> None:
    torch.compiler.reset()
    network = lively("tspike_vgg_small", num_classes=5, timesteps=T)
    frames = torch.randn(B, T, 3, 16, 16, dtype=torch.float64)
    step = StepNetwork(network, frames)
    expected, _ = run_steps(step, frames)
    batch = torch.export.Dim("batch")
    example = (frames[:, 0], step.initial_state(B))
    shapes = ({0: batch}, {site: {0: batch} for site in step.sites})
    exported = torch.export.export(step, example, dynamic_shapes=shapes).module()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    with torch.no_grad():
        for run, streams in ((compiled, B), (exported, B), (exported, 1)):
            state = step.initial_state(streams)
            for t in range(T):
                logits, state = run(frames[:streams, t], state)
                torch.testing.assert_close(logits, expected[t, :streams])


def test_what_does_not_fit(lively: Build) -> None:
    network = lively("tspike_vgg_small", num_classes=5, timesteps=T)
    frame = torch.randn(B, 3, 16, 16, dtype=torch.float64)
    step = StepNetwork(network, frame)
    state = step.initial_state(B)
    with pytest.raises(ValueError, match=r"for frames \[B, 3, 16, 16\], got shape \(2, 3, 32, 32\); .*another size"):
        step(torch.randn(B, 3, 32, 32), state)
    with pytest.raises(ValueError, match=r"for frames \[B, 3, 16, 16\], got shape \(2, 1, 16, 16\)"):
        step(frame[:, :1], state)
    with pytest.raises(ValueError, match=r"state is of 2 streams .* but 1 frames were given"):
        step(frame[:1], state)
    other = StepNetwork(network, torch.randn(1, 3, 32, 32))
    with pytest.raises(
        ValueError, match=r"frames of another size: the memory of .* has shape \(2, .*\), expected \[B, "
    ):
        step(frame, other.initial_state(B))
    resnet = lively("tspike_resnet_small", num_classes=5, timesteps=T)
    with pytest.raises(ValueError, match=r"of another network: memories that it lacks: stages\.0\.2.*reads: act1, "):
        step(frame, StepNetwork(resnet, frame).initial_state(B))
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        step.initial_state(0)
    with pytest.raises(ValueError, match=r"got shape \(2, 1, 16, 16\); a network for another number of channels"):
        StepNetwork(network, frame[:, :1])
    with pytest.raises(ValueError, match=r"in train mode.*call \.eval\(\)"):
        StepNetwork(network.train(), frame)


class Counts(nn.Module):
    """Its code depends on the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return x.mean((2, 3)) / (x.shape[0] + 1)


class Values(Counts):
    """Control flow that no example can answer for."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return x.mean((2, 3)) * len(x.tolist())


@pytest.mark.parametrize(("model", "message"), [(Counts, "depends on the number of images.*test_stepping"),
                                                (Values, "could not be traced")])  # fmt: skip
def test_networks_that_cannot_be_traced(model: type[nn.Module], message: str) -> None:
    network = SpikingNetwork(model(), T, input_size=(1, 8, 8), encoders=())
    network.model.act = TernaryLIF(T)
    with pytest.raises(TraceError, match=message):
        StepNetwork(network.eval(), torch.randn(1, 1, 8, 8))


class OwnForward(TernaryLIF):
    """A kind of neuron whose one step nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class OwnStep(OwnForward):
    """The same, and its step."""

    def step(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().step(memory, 2 * x)


def test_neurons_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.randn(B, T, 1, 8, 8, dtype=torch.float64)
    networks = []
    for kind in (OwnForward, OwnStep):
        monkeypatch.setitem(NEURONS, "own", kind)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        networks.append(ternarize(model, T, neuron="own", input_size=(1, 8, 8)).double().eval())
    with pytest.raises(ValueError, match=r"OwnForward \('1'\) has a forward of its own but no step"):
        StepNetwork(networks[0], frames)
    must_agree(networks[1], StepNetwork(networks[1], frames), frames)


def test_hooks_that_change_spikes(lively: Build) -> None:
    network = lively("tspike_vgg_small", num_classes=5, timesteps=T)
    next(iter(network.neurons().values())).register_forward_hook(lambda _n, _x, spikes: 2 * spikes)
    with pytest.raises(ValueError, match="a hook changes what the neurons"):
        StepNetwork(network, torch.randn(1, 3, 16, 16))
