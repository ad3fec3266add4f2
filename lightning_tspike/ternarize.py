"""From a network with ordinary activations to a spiking one: swap the activations, fold time into the batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn
from typing_extensions import Unpack

from .gauge import GaugeClasses, TrainingScales
from .graph import TraceError, static_encoders, trace
from .network import SpikingNetwork
from .neurons import NEURONS, NeuronOptions, SpikingNeuron
from .operations import channel_axis, layer_of

__all__ = ["ACTIVATIONS", "SpikingNetwork", "ternarize"]

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
"""Modules that :func:`ternarize` replaces by neurons. Gates (Sigmoid, Softmax, Hardsigmoid) stay."""


def ternarize(
    model: nn.Module,
    timesteps: int = 4,
    *,
    neuron: str = "ternary_lif",
    freeze_cancelled: bool = True,
    input_size: tuple[int, int, int] | None = None,
    **options: Unpack[NeuronOptions],
) -> SpikingNetwork:
    """Turn a network into a spiking one, in place: each activation module becomes a layer of spiking neurons.

    Where spikes of several layers are added up (a shortcut of spikes onto spikes), these layers get one amplitude
    together, so that the sum can be folded. With ``amplitude="channel"``, a module that is called with different
    numbers of channels, or whose channels come last (tokens of a transformer), gets one amplitude for the layer.

    Args:
        model: Any module that maps images [B, C, H, W] to logits [B, K] and whose activations are modules, such as
            timm's. It is changed and becomes part of the result.
        timesteps: Number of time steps T.
        neuron: Kind of neuron, a name in :data:`lightning_tspike.neurons.NEURONS`.
        freeze_cancelled: Keep at 1, without a parameter, every amplitude that changes nothing in training because a
            norm divides it out wherever it goes (:class:`lightning_tspike.gauge.TrainingScales`). To train with batch
            norms in eval mode, where nothing is divided out, say False.
        input_size: (C, H, W) of an example to trace the model on; default is what timm's model configuration says,
            with the channels of the first convolution.
        options: Options of the neurons, as in :class:`lightning_tspike.neurons.SpikingNeuron`: ``amplitude``,
            ``decay``, ``threshold``, ``learn_decay``, ``learn_threshold``, ``reset``, ``detach_reset``, ``surrogate``.

    Returns:
        The network: [B, C, H, W] or [B, T, C, H, W] -> [B, K].

    Raises:
        ValueError: The model has no activation module (:data:`ACTIVATIONS`), or a neuron option is out of range.
        TraceError: The model could not be traced, which ``amplitude="channel"`` needs to tell the channels.
    """
    activations = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, ACTIVATIONS)}
    if not activations:
        raise ValueError(
            f"{type(model).__name__} has no activation modules to replace by neurons; activations called as "
            f"functions (torch.relu, F.relu) must be turned into modules ({', '.join(a.__name__ for a in ACTIVATIONS)})"
        )
    if neuron not in NEURONS:
        raise ValueError(f"neuron must be one of {sorted(NEURONS)}, got {neuron!r}")
    weight = next(model.parameters(), torch.empty(0))
    graph: fx.Graph | None = None
    sizes = [input_size] if input_size else _input_sizes(model)
    for size in sizes:
        try:
            graph = trace(model, torch.zeros(1, *size, device=weight.device, dtype=weight.dtype))
            break
        except TraceError:
            if size is sizes[-1] and options.get("amplitude") == "channel":
                raise
    # Without a graph all is right, only slower: the input is repeated from the start, no amplitude is tied or frozen.
    input_size = size if graph else sizes[0]
    channels = _channels(graph, model, activations) if graph else {}
    neurons: dict[nn.Module, SpikingNeuron] = {}
    for activation in activations.values():  # one layer of neurons for each, however many names it has
        if activation not in neurons:
            own = _by_layer(options) if channels.get(activation) is None else options
            layer = NEURONS[neuron](timesteps, channels=channels.get(activation), **own)
            neurons[activation] = layer.to(weight.device, weight.dtype)
    encoders = static_encoders(graph, activations.__contains__) if graph else []
    for name, activation in activations.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, neurons[activation])
    if graph:  # in which the activations' names now stand for the neurons
        _tie_amplitudes(GaugeClasses(graph, model))
        if freeze_cancelled:
            for silent in TrainingScales(graph, model).cancelled():
                silent.raw_amplitude = None
    return SpikingNetwork(model, timesteps, input_size=input_size, encoders=encoders)


def _by_layer(options: NeuronOptions) -> NeuronOptions:
    """The same options, with one amplitude where channels cannot be told apart."""
    return {**options, "amplitude": "layer"} if options.get("amplitude") == "channel" else options


def _tie_amplitudes(classes: GaugeClasses) -> None:
    """Let neurons whose spikes are added up share one amplitude: only then can it be folded."""
    first: dict[tuple[int, ...], SpikingNeuron] = {}
    for neuron, layer in classes.neurons():
        if neuron.raw_amplitude is not None and not classes.is_pinned(layer.outputs):
            same = first.setdefault(tuple(classes.labels[layer.outputs].tolist()), neuron)
            neuron.raw_amplitude = same.raw_amplitude


def _channels(graph: fx.Graph, model: nn.Module, activations: Mapping[str, nn.Module]) -> dict[nn.Module, int | None]:
    """Number of channels, dimension 1, at each activation; None where it differs from call to call or comes last."""
    modules = dict(model.named_modules(remove_duplicate=False))
    channels: dict[nn.Module, int | None] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in activations:
            shape = node.meta["value"].shape
            layer = layer_of(node.all_input_nodes[0], modules)
            come_last = len(shape) > 2 and layer is not None and channel_axis(layer[0]) == -1
            count = None if come_last else shape[1]
            activation = activations[node.target]
            channels[activation] = count if channels.setdefault(activation, count) == count else None
    return channels


def _input_sizes(model: nn.Module) -> list[tuple[int, int, int]]:
    """What images may look like: the first convolution's channels, or those of timm's configuration."""
    channels, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    first_conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    read = first_conv.in_channels if first_conv is not None else channels
    # a model may rearrange pixels into channels before its first convolution
    return [(read, height, width), (channels, height, width)] if read != channels else [(channels, height, width)]
