"""The contract of all neurons: their equations, what they learn, and that nothing outlives a call."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_tspike import kernels
from lightning_tspike.functional import binary_lif, membrane_potential, ternary_lif
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.neurons import NEURONS, BinaryLIF, ComplementedTernaryLIF, SpikingNeuron, TernaryIF, TernaryLIF

OPTIONS: list[dict[str, Any]] = [
    {},
    {"amplitude": "fixed"},
    {"amplitude": "channel"},
    {"reset": "soft", "surrogate": "triangular"},
    {"learn_decay": True, "learn_threshold": True, "surrogate": "arctan", "detach_reset": True},
    {"couple_threshold": True},
]
LEVELS: list[dict[str, Any]] = [
    {"levels": 3, "reset": "soft", "threshold": 0.2, "amplitude": "channel"},
    {"levels": 3, "reset": "soft", "threshold": 0.2, "learn_threshold": True},
    {"levels": 3, "reset": "soft", "threshold": 0.2, "amplitude": "channel", "couple_threshold": True},
]
FAMILY = [(name, options) for name, options in itertools.product(NEURONS, OPTIONS)
          if not (name in ("ternary_if", "quantized") and options.get("learn_decay"))]  # fmt: skip
FAMILY += itertools.product(("ternary_lif", "ternary_if", "quantized"), LEVELS)
T, C = 5, 3
every_neuron = pytest.mark.parametrize(("name", "options"), FAMILY)


def build(name: str, options: dict[str, Any]) -> SpikingNeuron:
    """A neuron whose learned numbers are not where they start."""
    neuron = NEURONS[name](T, channels=C, **options).double()
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
    return neuron


def current() -> torch.Tensor:
    return 0.7 * torch.randn(T * 2, C, 4, 4, dtype=torch.float64)


def one_neuron(neuron: SpikingNeuron, currents: list[float], channel: int) -> list[float]:
    """The equations, with Python numbers: the module's docstrings, not its code."""
    numbers = {name: value.tolist() for name, value in neuron.state_dict().items()}
    amplitudes, theta = numbers.get("raw_amplitude", [1.0]), float(neuron.threshold)
    amplitude = amplitudes[channel if len(amplitudes) > 1 else 0]
    theta *= amplitude if neuron.couple_threshold else 1
    tau, (alpha, beta, gamma) = float(neuron.decay), (0.0, 0.0, 0.0)
    if "raw_memory" in numbers:
        alpha, beta, gamma = torch.tensor(numbers["raw_memory"], dtype=torch.float64).sigmoid().tolist()
    h, out = 0.0, []
    for x in currents:
        u = h + x
        s = 1 if u >= theta else -1 if neuron.is_ternary and u <= -theta else 0
        if neuron.levels > 1:
            s = math.copysign(min(neuron.levels, math.floor(abs(u) / (2 * theta) + 0.5)), u)
        out.append(amplitude * s)
        taken = theta if neuron.levels == 1 else 2 * theta
        v = u - taken * s if neuron.reset == "soft" else u * (1 - abs(s))
        if "raw_memory" not in numbers:
            h = tau * v
        elif neuron.variant == "static":
            h = alpha * max(h, 0) - beta * max(-h, 0) + gamma * tau * v
        else:
            h = alpha * h + beta * max(tau * v, 0) - gamma * max(-tau * v, 0)
    return out


@every_neuron
def test_equations(name: str, options: dict[str, Any]) -> None:
    neuron, x = build(name, options), current()
    out = neuron(x)
    assert out.count_nonzero() not in (0, out.numel())
    steps, got = x.unflatten(0, (T, 2)), out.unflatten(0, (T, 2))
    for b, c, i, j in itertools.product(range(2), range(C), range(4), range(4)):
        expected = one_neuron(neuron, steps[:, b, c, i, j].tolist(), c)
        assert got[:, b, c, i, j].tolist() == pytest.approx(expected)


@every_neuron
def test_membrane_potential_is_what_fires(name: str, options: dict[str, Any]) -> None:
    neuron, x = build(name, options), current()
    u = neuron.membrane_potential(x)
    fires = (u.abs() if neuron.is_ternary else u) >= kernels.per_channel(neuron.firing_threshold, u)
    assert torch.equal(fires, neuron(x) != 0)


@every_neuron
def test_everything_learned_gets_a_gradient(name: str, options: dict[str, Any]) -> None:
    neuron, x = build(name, options), current().requires_grad_()
    (neuron(x) * torch.rand_like(x)).sum().backward()
    for parameter_name, parameter in [("x", x), *neuron.named_parameters()]:
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every_neuron
def test_symmetry_and_homogeneity(name: str, options: dict[str, Any]) -> None:
    """Ternary spikes are odd in the input; scaling input and threshold together changes nothing: the fold's ground."""
    neuron, x = build(name, options), current()
    expected = neuron(x)
    if neuron.is_ternary and name not in ("ctsn", "ctsn_events"):
        assert torch.equal(neuron(-x), -expected)
    neuron.threshold.data *= 4  # a power of two: to the bit
    assert torch.equal(neuron(4 * x), expected)


@every_neuron
def test_no_state_between_calls(name: str, options: dict[str, Any]) -> None:
    neuron, x = build(name, options), current()
    before = set(neuron.state_dict())
    first = neuron(x)
    assert torch.equal(neuron(x), first)
    assert set(neuron.state_dict()) == before <= {"raw_amplitude", "threshold", "raw_decay", "raw_memory"}
    for copied in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(copied(x), first)
    fresh = NEURONS[name](T, channels=C, **options).double()
    fresh.load_state_dict(neuron.state_dict())
    assert torch.equal(fresh(x), first)


@every_neuron
def test_activation_checkpointing(name: str, options: dict[str, Any]) -> None:
    neuron, x = build(name, options), current().requires_grad_()
    neuron(x).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(neuron, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, expected)


@every_neuron
def test_half_precision_integrates_in_single(name: str, options: dict[str, Any]) -> None:
    neuron = build(name, options).float()
    x = current().to(torch.bfloat16).requires_grad_()
    out = neuron(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, neuron(x.float()).to(torch.bfloat16))
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16


@every_neuron
def test_static_input_is_shown_at_every_step(name: str, options: dict[str, Any]) -> None:
    neuron = build(name, options)
    x = current()[:2]
    expected = neuron(x.repeat(T, 1, 1, 1))
    neuron.static_input = True
    assert torch.equal(neuron(x), expected)


@every_neuron
def test_starts_at_plain_spikes(name: str, options: dict[str, Any]) -> None:
    neuron, x = NEURONS[name](T, channels=C, **options), current().float()
    fixed = NEURONS[name](T, **{**options, "amplitude": "fixed", "couple_threshold": False})
    assert torch.equal(neuron(x), fixed(x))
    assert set(neuron(x).unique().tolist()) == set(range(-neuron.levels if neuron.is_ternary else 0, neuron.levels + 1))


def test_modules_are_the_functions() -> None:
    x = current()
    options = {"decay": 0.5, "threshold": 0.375, "reset": "soft"}
    assert torch.equal(TernaryLIF(T, **options)(x), ternary_lif(x, T, **options))
    assert torch.equal(BinaryLIF(T, **options)(x), binary_lif(x, T, **options))
    assert torch.equal(TernaryLIF(T, **options).membrane_potential(x), membrane_potential(x, T, **options))
    assert torch.equal(TernaryIF(T, threshold=0.375)(x), ternary_lif(x, T, decay=1.0, threshold=0.375))


def test_one_time_step_is_a_ternary_quantizer() -> None:
    x = current()
    for name in ("ternary_lif", "ternary_if", "ctsn", "quantized"):
        quantized = torch.where(x.abs() >= 0.5, x.sign(), 0)
        assert torch.equal(NEURONS[name](1)(x), quantized)


def test_levels_by_hand() -> None:
    """Two levels, theta = 1/2, tau = 1/2: what a spike has not sent stays, halves are sent."""
    x = torch.tensor([[0.75], [0.625], [3.5], [-0.25], [-2.5]], dtype=torch.float64)
    # u: 0.75 -> 1, left -0.25; 0.5 -> 1, left -0.5; 3.25 -> 2 (clipped), left 1.25; 0.375 -> 0; -2.3125 -> -2
    spikes = ternary_lif(x, 5, 0.5, decay=0.5, levels=2, reset="soft")
    assert spikes.flatten().tolist() == [0.5, 0.5, 1.0, 0.0, -1.0]
    potential = membrane_potential(x, 5, decay=0.5, levels=2, reset="soft")
    assert potential.flatten().tolist() == [0.75, 0.5, 3.25, 0.375, -2.3125]


@pytest.mark.parametrize("kernel", ["reference", "native", "loops"])
def test_gradients_of_levels_are_those_of_the_straight_through_formula(kernel: str) -> None:
    """Of clip(round(u / 2 theta), -D, D) with a round that autograd does not see, over three steps."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
            return z.sign() * (z.abs() + 0.5).floor()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad

    x, weight = 2 * torch.randn(2, 3 * 4, 5, 3, dtype=torch.float64)
    numbers = [torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.6, [0.2, 0.3, 0.4, 0.5, 0.6])]  # a, tau, theta
    given = [value.requires_grad_() for value in (x, *numbers)]

    def formula(x: torch.Tensor, a: torch.Tensor, decay: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        v, spikes = torch.zeros(4, 5, 3, dtype=torch.float64), []
        for current in x.unflatten(0, (3, 4)):
            u = decay * v + current
            s = Round.apply((u / (2 * theta[:, None])).clamp(-3, 3))
            v = u - 2 * theta[:, None] * s
            spikes.append(a * s)
        return torch.cat(spikes)

    with kernels.use(kernel):
        a, decay, theta = given[1:]
        spikes = ternary_lif(given[0], 3, a, decay=decay, threshold=theta, levels=3, reset="soft")
        got = torch.autograd.grad((spikes * weight).sum(), given)
    expected = formula(*given)
    assert torch.equal(spikes, expected)
    assert set((spikes / 0.7).round().unique().tolist()) == set(range(-3, 4))
    want = torch.autograd.grad((expected * weight).sum(), given)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("static_input", [False, True])
def test_quantized_is_one_time_step_of_a_neuron(levels: int, static_input: bool) -> None:
    """The quantised ANN that a spiking network is compared with; at more time steps each is for itself."""
    options: dict[str, Any] = {"levels": levels, "reset": "soft", "threshold": 0.25}
    quantized, spiking = NEURONS["quantized"](1, **options), NEURONS["ternary_if"](1, **options)
    x = current()[:2].float().requires_grad_()
    for neuron in (quantized, spiking):
        neuron.static_input = static_input
    assert torch.equal(quantized(x), spiking(x))
    gradients = [torch.autograd.grad(neuron(x).square().sum(), x)[0] for neuron in (quantized, spiking)]
    assert torch.equal(*gradients)
    each = torch.cat([spiking(part) for part in current().float().split(2)])
    quantized.timesteps, quantized.static_input = T, False
    x = current().float()
    x[0, 0, 0, 0] = float("inf")  # is forgotten as well
    each = torch.cat([spiking(part) for part in x.split(2)])
    assert torch.equal(quantized(x), each)
    spikes, memory = quantized.step(torch.zeros(2, C, 4, 4), x[:2])
    assert torch.equal(spikes, each[:2])
    assert memory.count_nonzero() == 0
    assert NEURONS["quantized"](1, levels=levels, threshold=0.25).options == quantized.options  # reset is nothing to it


@pytest.mark.parametrize("levels", [0, 128, True, 2.0, "2"])
def test_bad_levels(levels: Any) -> None:
    for make in (lambda: TernaryLIF(2, levels=levels, reset="soft"), lambda: NEURONS["quantized"](2, levels=levels),
                 lambda: ternary_lif(torch.zeros(2), 1, levels=levels, reset="soft")):  # fmt: skip
        with pytest.raises(ValueError, match=f"levels must be a whole number from 1 to 127, got {levels!r}"):
            make()


def test_levels_where_they_have_no_meaning() -> None:
    for name in ("binary_lif", "ctsn", "ctsn_events"):
        with pytest.raises(ValueError, match="levels=2 is for neuron='ternary_lif'"):
            NEURONS[name](2, levels=2, reset="soft")
    for make in (lambda: TernaryLIF(2, levels=2), lambda: ternary_lif(torch.zeros(2), 1, levels=2)):
        with pytest.raises(ValueError, match="levels=2 needs reset='soft'"):
            make()


def test_neurons_of_older_files_have_one_level() -> None:
    neuron = TernaryLIF(2)
    del neuron.__dict__["levels"]  # as pickled before there were levels
    again, x = pickle.loads(pickle.dumps(neuron)), current()[:4]
    assert again.levels == 1
    assert torch.equal(again(x), TernaryLIF(2)(x))


def test_complemented_neuron_remembers_what_a_reset_forgets() -> None:
    """Three steps by hand, for still images, all gates one half, tau = 1/4: h_3 = alpha h_2 + gamma tau v_2."""
    x = torch.tensor([[0.4], [0.46], [0.4875]], dtype=torch.float64)
    # u_1 = 0.4, h_2 = 0.125 * 0.4 = 0.05; u_2 = 0.51 fires, h_3 = 0.5 * 0.05 + 0 = 0.025; u_3 = 0.5125 fires
    assert ComplementedTernaryLIF(3)(x).flatten().tolist() == [0, 1, 1]
    assert TernaryLIF(3)(x).flatten().tolist() == [0, 1, 0]


def test_amplitude_never_gets_negative_and_learns() -> None:
    neuron = TernaryLIF(1)
    optimizer = torch.optim.SGD(neuron.parameters(), lr=1.5)
    for _ in range(5):
        optimizer.zero_grad()
        neuron(torch.ones(4)).sum().backward()  # wants the amplitude as small as it can get
        optimizer.step()
        assert neuron.amplitude >= 0
    assert neuron.raw_amplitude != 1


def test_learned_threshold_and_decay_stay_in_their_range() -> None:
    neuron = TernaryLIF(2, learn_decay=True, learn_threshold=True)
    assert float(neuron.decay) == pytest.approx(0.25)
    with torch.no_grad():
        neuron.threshold.fill_(-0.7)
        neuron.raw_decay.fill_(-50)
    assert neuron.firing_threshold.item() == pytest.approx(0.7)
    assert 0 <= float(neuron.decay) < 1e-9
    assert neuron(torch.tensor([0.8, -0.8])).tolist() == [1, -1]


@every_neuron
def test_parameters_can_be_sharded(name: str, options: dict[str, Any]) -> None:
    """FSDP2 shards along a dimension; the numbers that the equations take stay scalars, or one for each channel."""
    neuron = NEURONS[name](T, channels=C, **options)
    assert all(parameter.ndim >= 1 for parameter in neuron.parameters())
    shape = (C,) if options.get("amplitude") == "channel" else ()
    assert torch.as_tensor(neuron.amplitude).shape == shape
    assert torch.as_tensor(neuron.decay).shape == ()
    assert neuron.firing_threshold.shape == (shape if options.get("couple_threshold") else ())


@every_neuron
def test_scalars_of_older_files_are_loaded(name: str, options: dict[str, Any]) -> None:
    neuron, x = build(name, options), current()
    old = {key: value[0] if value.shape == (1,) else value for key, value in neuron.state_dict().items()}
    fresh = NEURONS[name](T, channels=C, **options).double()
    fresh.load_state_dict(old)
    assert torch.equal(fresh(x), neuron(x))
    assert {key: value.shape for key, value in fresh.state_dict().items()} == {
        key: value.shape for key, value in neuron.state_dict().items()
    }


def test_one_channel_is_as_the_layer() -> None:
    x = current()[:, :1]
    layer, channel = TernaryLIF(T).double(), TernaryLIF(T, amplitude="channel", channels=1).double()
    for neuron in (layer, channel):
        nn.init.constant_(neuron.raw_amplitude, 0.7)
        neuron(x).square().sum().backward()
    assert torch.equal(layer(x), channel(x))
    assert torch.equal(layer.raw_amplitude.grad, channel.raw_amplitude.grad)


@pytest.mark.filterwarnings("ignore")
def test_fsdp2_shards_a_network(one_process_group: None, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0,
                                         world_size=1)  # fmt: skip
    config = NetworkConfig("tspike_vgg_small", 5, timesteps=2, learn_decay=True, learn_threshold=True,
                           freeze_cancelled=False)  # fmt: skip
    network = create_network(config)
    x = torch.randn(2, 3, 16, 16)
    expected = network(x)
    expected.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    sharded = copy.deepcopy(network)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    logits = sharded(x)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], msg=name)


def test_a_coupled_threshold_rounds_to_a_learned_step() -> None:
    """a * s = a * clip(round(u / a), -1, 1) at one time step, and the gradient of a is LSQ's (arXiv 1902.08153)."""
    neuron = TernaryLIF(1, couple_threshold=True)
    nn.init.constant_(neuron.raw_amplitude, 0.8)
    x = torch.tensor([0.1, 0.3, 0.5, 0.7, 1.5, -0.35, -0.45, -2.0])
    out = neuron(x)
    assert torch.equal(out, 0.8 * (x / 0.8).round().clip(-1, 1))
    out.sum().backward()
    # inside the window of the surrogate, |u| <= a, round(u / a) - u / a; beyond it sign(u)
    expected = torch.where(x.abs() <= 0.8, (x / 0.8).round() - x / 0.8, x.sign()).sum()
    torch.testing.assert_close(neuron.raw_amplitude.grad, expected.reshape(1))


def test_amplitude_leaves_zero_again() -> None:
    neuron = TernaryLIF(1)
    neuron.raw_amplitude.data.zero_()
    (-neuron(torch.ones(4)).sum()).backward()
    assert neuron.raw_amplitude.grad == -4


def test_fixed_amplitude_has_no_parameter() -> None:
    neuron = TernaryLIF(2, amplitude="fixed")
    assert list(neuron.parameters()) == []


def test_amplitudes_for_other_channels() -> None:
    neuron = TernaryLIF(2, amplitude="channel", channels=3)
    with pytest.raises(ValueError, match=r"for 3 channels, but x has shape \(4, 5, 2, 2\)"):
        neuron(torch.zeros(4, 5, 2, 2))


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps .* 0"),
        ({"amplitude": "pixel"}, "amplitude .* 'pixel'"),
        ({"amplitude": "channel"}, r"channels=C, .* None"),
        ({"amplitude": "channel", "channels": 0}, r"channels=C, .* 0"),
        ({"threshold": 0}, "threshold .* 0"),
        ({"threshold": float("inf")}, "threshold .* inf"),
        ({"reset": "none"}, "reset .* 'none'"),
        ({"surrogate": "box"}, "surrogate .* 'box'"),
        ({"learn_threshold": 1}, "learn_threshold .* 1"),
        ({"couple_threshold": True, "amplitude": "fixed"}, "couple_threshold=True needs .* amplitude='fixed'"),
        ({"couple_threshold": True, "learn_threshold": True}, "couple_threshold=True needs .* learn_threshold=True"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NEURONS[name](**{"timesteps": 4, **options})


def test_bad_decay() -> None:
    with pytest.raises(ValueError, match=r"decay .* 1\.5"):
        TernaryLIF(4, decay=1.5)
    with pytest.raises(ValueError, match="starts between 0 and 1"):
        TernaryLIF(4, decay=1, learn_decay=True)
    with pytest.raises(ValueError, match="does not leak"):
        TernaryIF(4, decay=0.5)
    with pytest.raises(ValueError, match="no memory"):
        NEURONS["quantized"](4, decay=0.5)
    with pytest.raises(ValueError, match="variant .* 'sound'"):
        ComplementedTernaryLIF(4, variant="sound")
