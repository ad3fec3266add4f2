"""Start a spiking network from a trained ANN: fit each layer so that its spikes stand for the ANN's activations.

From the input to the logits, on a few images, for each layer and on the spikes that it will really get (a bar is the
mean over time, z and f(z) are what the ANN's activation gets and gives):

    convolution, linear   minimise || W s_bar - y ||^2 + ridge * || W - g W_ann ||^2 over W and the bias,
                          y: what the ANN's layer gives, g: the factor that brings its weights closest to y
    batch norm            takes its statistics again
    neuron                shifts its input by mean(z) - mean(x) - c, through the bias in front of it, and minimises
                          sum_channels Var[f(z) - a * s_bar] over theta and a of the layer and c of the channel

The shift c lets all three levels of a ternary spike stand for values that a ReLU gives: it never gives a negative one.
A constant that is missing from the spikes is left to the layers behind, hence the variance.

Balancing thresholds and weights layer by layer is due to Diehl et al. (2015), shifting the membrane to Deng and Gu
(2021, arXiv 2103.00476), calibrating layer after layer on a few images to Li et al. (2021, arXiv 2106.06984), least
squares for the weights to He et al. (2017, arXiv 1707.06168, for pruning). The fit of a ternary neuron is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .._batches import images_of
from .._observe import observed
from ..functional import per_channel
from ..graph.layer_rules import absorbs, layer_of, layer_rule_of
from ..graph.operations import NORMS, count_owners
from ..graph.rules import Join, rule_of
from ..graph.tracing import trace
from ..network.modularize import functions_to_modules
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron

__all__ = ["calibrate", "copy_weights", "new_statistics", "on_inputs"]

NEURON_SAMPLES = 2048  # values per channel that a neuron layer is fitted on
WEIGHT_SAMPLES = 16384  # positions, of all images, that weights are fitted on
RIDGE = 0.01  # in units of the mean square of the layer's input
THRESHOLDS = [2**k for k in (-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2)]  # tried, in rms of the layer's input
SHIFTS = [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]  # tried, in standard deviations of the channel's input


class _Layer(NamedTuple):
    """What the ANN's layer of one name does on the images; samples are [B, C, K], at ``positions`` [K] in space."""

    positions: Tensor
    mean: Tensor  # of the input, [C]; for activations
    output: Tensor  # sampled


class _Fit(NamedTuple):
    """The best of the neurons tried so far."""

    error: float  # share of the variance of f(z) that the spikes miss
    scale: Tensor  # factor on the threshold
    shift: Tensor  # c, [C]
    amplitude: Tensor  # [] or [C]


@torch.no_grad()
def calibrate(network: SpikingNetwork, ann: nn.Module, images: Tensor) -> dict[str, float]:
    """Give a network the weights of an ANN of the same architecture, then fit all layers to it on some images.

    Weights are fitted in linear layers and 2-d convolutions that pad with zeros; others keep those of the ANN. A neuron
    layer without a bias of its own in front is not shifted. Deterministic; in float32 on the network's device.

    Args:
        network: From :func:`lightning_tspike.ternarize`, not folded; it is changed in place.
        ann: The network before it was ternarized, trained; it is put into eval mode.
        images: Some hundred still images [B, C, H, W], prepared as for training the ANN, on the network's device.

    Returns:
        For each neuron layer the share of the variance of the ANN's activation that its spikes miss, in [0, 1].

    Raises:
        ValueError: ``ann`` has other weights than the network, or ``images`` has another shape, whole numbers or NaN,
            or thresholds are coupled to amplitudes.
        TraceError: The network could not be traced.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"calibration needs two or more still images [B, C, H, W], got shape {tuple(images.shape)}")
    if coupled := [name for name, neuron in network.neurons().items() if neuron.is_coupled]:
        raise ValueError(
            "calibration fits thresholds and amplitudes each for itself, but couple_threshold=True ties them in "
            f"{coupled}"
        )
    images = images_of(images, next(network.parameters()).dtype)
    copy_weights(network, ann)
    with ExitStack() as undo:  # the ANN is as it was afterwards
        ann, _ = functions_to_modules(ann, trace(ann, images[:1]), images[:1], undo)
        return _calibrate(network, ann, images)


def _calibrate(network: SpikingNetwork, ann: nn.Module, images: Tensor) -> dict[str, float]:
    graph = network.trace(images[:1])
    calls = Counter(module for _, module in _calls(graph, network.model))
    owners = count_owners(network.model)
    own = {name: m for name, m in network.model.named_modules() if calls[m] == 1 and absorbs(m, owners)}
    neurons: dict[str, Any] = {name: m for name, m in own.items() if isinstance(m, SpikingNeuron)}
    weighted: dict[str, Any] = {name: m for name, m in own.items() if _can_fit_weights(m)}
    biases = _biases(graph, network.model, set(own.values()))
    read = {name: biases.get(name, m) for name, m in (neurons | weighted).items()}
    axes = {name: layer_rule_of(m).channel_axis(m) for name, m in read.items()}
    layers = _record(ann.eval(), images, axes)
    errors: dict[str, float] = {}
    tied: set[Tensor] = set()  # amplitudes that are fitted already

    def fit_weights(name: str, x: Tensor) -> Tensor:
        _fit_weights(weighted[name], x.unflatten(0, (-1, len(images))).mean(0), layers[name])
        return x

    def fit_neuron(name: str, x: Tensor) -> Tensor:
        x, errors[name] = _fit_neuron(neurons[name], x, layers[name], biases.get(name), axes[name], tied)
        return x

    with new_statistics(network), on_inputs(weighted, fit_weights), on_inputs(neurons, fit_neuron):
        network(images)
    return errors


def copy_weights(network: SpikingNetwork, ann: nn.Module) -> None:
    """Give a network the weights and statistics of the ANN that it was before it was ternarized.

    Raises:
        ValueError: ``ann`` has others than the network; the message names some.
    """
    neurons = tuple(f"{name}." for name in network.neurons())
    ours, theirs = network.model.state_dict(), ann.state_dict()
    shapes = {name: tuple(t.shape) for name, t in ours.items() if not name.startswith(neurons)}
    other = {name: tuple(t.shape) for name, t in theirs.items() if not name.startswith(neurons)}
    if differ := sorted(shapes.items() ^ other.items()):
        raise ValueError(f"the ANN is another architecture than the network: they differ in {differ[:4]}")
    network.model.load_state_dict({name: theirs[name] for name in shapes}, strict=False)


def _calls(graph: fx.Graph, model: nn.Module) -> Iterator[tuple[fx.Node, nn.Module]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if (layer := layer_of(node, modules)) is not None:
            yield node, layer[0]


def _biases(graph: fx.Graph, model: nn.Module, own: set[nn.Module]) -> dict[str, nn.Module]:
    """For neuron layers by name: the layer in front whose bias reaches nothing but them."""
    modules = dict(model.named_modules(remove_duplicate=False))

    def find(node: fx.Node) -> nn.Module | None:
        if len(node.users) > 1:
            return None
        if (layer := layer_of(node, modules)) is not None:
            return layer[0] if layer[0] in own and getattr(layer[0], "bias", None) is not None else None
        passes = node.op == "call_module" and isinstance(modules[str(node.target)], (nn.Identity, nn.Dropout))
        adds = isinstance(rule_of(node, modules, lambda _: False), Join) and "sub" not in str(node.target)
        sources = [found for n in node.all_input_nodes if (found := find(n)) is not None] if passes or adds else []
        return sources[0] if sources else None

    places = {
        str(n.target): find(n.all_input_nodes[0]) for n, m in _calls(graph, model) if isinstance(m, SpikingNeuron)
    }
    return {name: layer for name, layer in places.items() if layer is not None}


def _record(ann: nn.Module, images: Tensor, axes: dict[str, int]) -> dict[str, _Layer]:
    """Run the ANN and keep what the layers of these names do; channels are where ``axes`` says."""
    layers: dict[str, _Layer] = {}
    means: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def before(name: str, x: Tensor) -> Tensor:  # before, because an activation may work in place
        means[name] = _channels_second(x, axes[name]).mean((0, 2))
        return x

    def after(name: str, output: Tensor) -> None:
        y = _channels_second(output, axes[name])
        count = max(1, WEIGHT_SAMPLES // len(y))
        positions = torch.randperm(y.shape[2], generator=generator)[:count].to(y.device)
        layers[name] = _Layer(positions, means[name], y[:, :, positions])

    modules = {name: ann.get_submodule(name) for name in axes}
    with on_inputs(modules, before), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(lambda _m, _a, y, name=name: after(name, y)).remove)
        ann(images)
    return layers


@contextmanager
def on_inputs(modules: Mapping[str, nn.Module], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Have ``change(name, x)`` called on what modules get; they get its result instead."""
    with observed(), ExitStack() as hooks:
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(lambda _m, args, name=name: (change(name, args[0]),))
            hooks.callback(hook.remove)
        yield


@contextmanager
def new_statistics(network: SpikingNetwork) -> Iterator[None]:
    """Eval mode, but batch norms take their statistics from the one batch that comes."""
    training = {module: module.training for module in network.modules()}
    norms = {module: module.momentum for module in network.modules() if isinstance(module, NORMS)}
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
        for module, mode in training.items():
            module.training = mode


def _channels_second(x: Tensor, axis: int = 1) -> Tensor:
    """[B, C, ...] or, with ``axis`` -1, [B, ..., C] -> [B, C, positions]."""
    return x.movedim(axis, 1).reshape(x.shape[0], x.shape[axis], -1)


def _can_fit_weights(module: nn.Module) -> bool:
    if type(module).forward is nn.Linear.forward:
        return True
    is_plain = type(module).forward is nn.Conv2d.forward
    return is_plain and module.padding_mode == "zeros" and isinstance(module.padding, tuple)


def _fit_weights(module: Any, x: Tensor, layer: _Layer) -> None:
    """Fit weights and bias so that the layer gives for ``x`` [B, ...] what the ANN's layer gave."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    # G groups of D numbers in and O numbers out at each of N positions
    samples = torch.cat([_patches(module, part)[:, :, layer.positions] for part in x.split(32)])  # [B, G*D, K]
    inputs = samples.transpose(1, 2).flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)  # [G, N, D]
    outputs = layer.output.transpose(1, 2).flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)  # [G, N, O]
    mean_in, mean_out = inputs.mean(1, keepdim=True), outputs.mean(1, keepdim=True)
    inputs, outputs = inputs - mean_in, outputs - mean_out
    old = module.weight.flatten(1).unflatten(0, (groups, -1)).mT  # [G, D, O]
    given = inputs @ old
    gain = (given * outputs).sum() / given.square().sum().clamp_min(1e-12)
    new = gain * old + _ridge_regression(inputs, outputs - gain * given)
    module.weight.copy_(new.mT.flatten(0, 1).view_as(module.weight))
    if module.bias is not None:
        module.bias.copy_((mean_out - mean_in @ new).flatten())


def _ridge_regression(x: Tensor, y: Tensor) -> Tensor:
    """W [G, D, O] that minimises || x W - y ||^2 + ridge * || W ||^2; x [G, N, D], y [G, N, O]."""
    ridge = RIDGE * x.square().sum((1, 2)).mean() / x.shape[2] + 1e-12
    is_wide = x.shape[1] < x.shape[2]  # then W = x^T (x x^T + ridge)^-1 y is the smaller system
    gram = (x @ x.mT if is_wide else x.mT @ x).double()
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    solved = torch.linalg.solve(gram, (y if is_wide else x.mT @ y).double()).to(x.dtype)
    return x.mT @ solved if is_wide else solved


def _patches(module: Any, x: Tensor) -> Tensor:
    """What the layer multiplies by its weights, [B, inputs, positions]."""
    if isinstance(module, nn.Linear):
        return _channels_second(x, -1)
    return F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)


def _fit_neuron(neuron: Any, x: Tensor, layer: _Layer, bias: Any, axis: int, tied: set[Tensor]) -> tuple[Tensor, float]:
    """Fit threshold and amplitude of a neuron layer and the bias in front; give its new input and what it misses."""
    values = _channels_second(x, axis)
    shift = layer.mean - values.mean((0, 2)) if bias is not None else torch.zeros_like(layer.mean)
    positions = max(1, NEURON_SAMPLES // len(layer.output))
    sample = values[:, :, layer.positions[:positions]] + shift.unsqueeze(-1)  # [B or T*B, C, K]
    fit = _search(neuron, sample, layer.output[:, :, :positions], is_shifted=bias is not None, tied=tied)
    neuron.threshold.mul_(fit.scale)
    if neuron.raw_amplitude is not None and neuron.raw_amplitude not in tied:
        neuron.raw_amplitude.copy_(fit.amplitude)
        tied.add(neuron.raw_amplitude)
    if bias is not None:
        shift = shift - fit.shift
        bias.bias.add_(shift)
    return x + shift.view(-1, *[1] * ((x.ndim - 2) if axis == 1 else 0)), fit.error


def _search(neuron: SpikingNeuron, x: Tensor, target: Tensor, *, is_shifted: bool, tied: set[Tensor]) -> _Fit:
    """Try thresholds and shifts on ``x`` [B or T*B, C, K]; ``target`` is f(z) [B, C, K]."""
    target = target - target.mean((0, 2), keepdim=True)
    power = target.square().sum().clamp_min(1e-12)
    mean, std = x.mean((0, 2)), x.std((0, 2))
    shifts = torch.stack([mean + k * std for k in SHIFTS] if is_shifted else [torch.zeros_like(mean)])  # [S, C]
    learned = neuron.raw_amplitude
    best: _Fit | None = None
    for factor in THRESHOLDS:
        scale = factor * x.square().mean().sqrt().clamp_min(1e-12) / neuron.firing_threshold
        moments = []
        for shift in shifts:
            # scaling the input scales the membrane potential, as the inverse scaling of the threshold would
            spikes = neuron.forward((x - shift.unsqueeze(-1)) / scale)
            rate = spikes.unflatten(0, (neuron.timesteps, -1)).mean(0)  # [B, C, K]
            rate = rate / per_channel(torch.as_tensor(neuron.amplitude, device=x.device), rate)
            rate = rate - rate.mean((0, 2), keepdim=True)
            moments.append(torch.stack([(rate * target).sum((0, 2)), rate.square().sum((0, 2))]))
        covariance, variance = torch.stack(moments, 1)  # [S, C] each
        pick = (covariance.clamp_min(0).square() / variance.clamp_min(1e-12)).argmax(0, keepdim=True)  # [1, C]
        for _ in range(4):  # the amplitude for these shifts, the shifts for this amplitude, ...
            if learned is not None and learned in tied:
                amplitude = learned.abs()
            else:
                dims = 0 if learned is not None and learned.numel() > 1 else (0, 1)
                above, below = (m.gather(0, pick).sum(dims) for m in (covariance, variance))
                amplitude = (above / below.clamp_min(1e-12)).clamp_min(1e-3)
            losses = amplitude.square() * variance - 2 * amplitude * covariance
            pick = losses.argmin(0, keepdim=True)
        error = 1 + (losses.gather(0, pick).sum() / power).item()
        if best is None or error < best.error:
            best = _Fit(error, scale, shifts.gather(0, pick)[0], amplitude)
    assert best is not None
    return best
