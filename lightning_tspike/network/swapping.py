"""From a network with ordinary activations to a spiking one: swap the activations, fold time into the batch."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.activations import ACTIVATIONS, activation_calls, is_activation, replace_module, take_hooks
from ..graph.gauges import GaugeClasses, TrainingScales
from ..graph.layer_rules import layer_of, layer_rule_of
from ..graph.tracing import TraceError, counts_on_batch, static_encoders, trace
from ..neurons import NEURONS, NONE, SpikingNeuron, check_neuron
from .modularize import functions_to_modules
from .spiking_network import SpikingNetwork

__all__ = ["ACTIVATIONS", "SpikingNetwork", "ternarize"]


def ternarize(
    model: nn.Module,
    timesteps: int = 4,
    *,
    neuron: str = "ternary_lif",
    freeze_cancelled: bool = True,
    input_size: tuple[int, ...] | None = None,
    **options: Any,
) -> SpikingNetwork:
    """Turn a network into a spiking one, in place: each activation becomes a layer of spiking neurons.

    Activations are modules (:data:`ACTIVATIONS` and timm's own). A call of a function (``F.relu``) is turned into a
    module where that is safe (:mod:`lightning_tspike.network.modularize`): where the module that calls it takes tensors
    alone, does the same with all of them, in training as in eval mode, and has no public method except its ``forward``.
    Calls that stay are warned of, with their lines; so are modules that are called at several places.

    An activation that the input does not reach, where a model computes biases or weights, stays as it is.

    Where spikes of several layers are added up (a shortcut of spikes onto spikes), these layers get one amplitude
    together, so that the sum can be folded. With ``amplitude="channel"``, a module that is called with different
    numbers of channels, or whose channels come last (tokens of a transformer), gets one amplitude for the layer.

    Args:
        model: Any module that maps images [B, C, H, W] or vectors [B, F] to logits [B, K], such as timm's and
            torchvision's. It may also return the logits in a dict or an object, under the name ``logits``, or as the
            one matrix of a tuple. It is changed and becomes part of the result; if anything fails, it stays as it was.
        timesteps: Number of time steps T.
        neuron: Kind of neuron, a name in :data:`lightning_tspike.neurons.NEURONS`. ``"none"`` replaces nothing: the
            ANN itself, to be trained and measured by the same code; one time step is enough for it.
        freeze_cancelled: Keep at 1, without a parameter, every amplitude that changes nothing in training because a
            norm divides it out wherever it goes (:class:`lightning_tspike.graph.TrainingScales`). To train with batch
            norms in eval mode, where nothing is divided out, say False.
        input_size: (C, H, W) or (F,) of an example to trace the model on; default is what timm's model configuration
            says, with the channels of the first convolution, or what the first linear layer of a model without reads.
        options: Options of the neurons, as in :class:`lightning_tspike.neurons.NeuronOptions`.

    Returns:
        The network: [B, C, H, W] or [B, T, C, H, W] -> [B, K]; of vectors, [B, F] or [B, T, F] -> [B, K].

    Raises:
        ValueError: The model has no activation that can become a neuron, or a neuron option is out of range.
        TraceError: The model could not be traced, which ``amplitude="channel"`` needs to tell the channels.
    """
    check_neuron(neuron)
    weight = next(model.parameters(), torch.empty(0))
    if neuron == NONE:
        size = tuple(input_size or _input_sizes(model)[0])
        return SpikingNetwork(model, timesteps, input_size=size, encoders=())
    with ExitStack() as undo:  # should anything fail, the model is as it was
        graph, example = _trace(model, input_size, weight, must_trace=options.get("amplitude") == "channel")
        if graph is not None:
            model, graph = functions_to_modules(model, graph, example, undo)
        left = [where for _, where in activation_calls(graph)] if graph else []
        activations = {name: m for name, m in model.named_modules(remove_duplicate=False) if is_activation(m)}
        if graph:
            activations = _of_signals(graph, activations)
        if not activations:
            raise ValueError(
                f"{type(model).__name__} has no activation modules to replace by neurons; activations that are called "
                f"as functions must be turned into modules (nn.ReLU, nn.GELU, ...): {', '.join(left) or 'none seen'}"
            )
        encoders = _encoders(model, graph, activations, example)
        channels = _channels(graph, model, activations) if graph else {}
        neurons: dict[nn.Module, SpikingNeuron] = {}
        for activation in dict.fromkeys(activations.values()):  # one layer for each, however many names it has
            own = _by_layer(options) if channels.get(activation) is None else options
            layer = NEURONS[neuron](timesteps, channels=channels.get(activation), **own)
            neurons[activation] = take_hooks(activation, layer.to(weight.device, weight.dtype))
            replace_module(model, activation, neurons[activation], undo)
        if graph:  # in which the activations' names now stand for the neurons
            _warn_of_calls(graph, activations)
            _tie_amplitudes(GaugeClasses(graph, model))
            if freeze_cancelled:
                for silent in TrainingScales(graph, model).cancelled():
                    silent.raw_amplitude = None
        # Without a graph all is right, only slower: the input is repeated from the start, no amplitude is tied.
        network = SpikingNetwork(model, timesteps, input_size=tuple(example.shape[1:]), encoders=encoders)
        undo.pop_all()
    if left:
        warnings.warn(
            f"these activations are called as functions and were not replaced by neurons: {', '.join(left)}; make them "
            "modules (self.act = nn.ReLU()) of the module that calls them",
            stacklevel=2,
        )
    return network


def _trace(
    model: nn.Module, input_size: tuple[int, ...] | None, weight: Tensor, *, must_trace: bool
) -> tuple[fx.Graph | None, Tensor]:
    """The graph, None where no size can be traced, and the example that it was traced on."""
    generator = torch.Generator().manual_seed(0)
    sizes = [input_size] if input_size else _input_sizes(model)
    examples = [torch.randn(1, *size, generator=generator).to(weight) for size in sizes]
    for example in examples:
        try:
            graph = trace(model, example)
            if example.ndim == 2 and input_size is None and _reshapes_input(graph, model):
                raise TraceError("the model may make vectors of images by itself: say input_size=(C, H, W)")
            return graph, example
        except TraceError as error:
            reason = error
    if must_trace:
        raise reason
    warnings.warn(
        f"{reason}. So images are repeated T times from the start, which is correct but slower; amplitudes of spikes "
        "that are added up are not tied, so they cannot be folded; activations called as functions are not seen",
        stacklevel=3,
    )
    return None, examples[0]


def _encoders(
    model: nn.Module, graph: fx.Graph | None, activations: Mapping[str, nn.Module], example: Tensor
) -> list[str]:
    """Neurons that end the static prefix; none where the model would mix samples behind it."""
    if graph is None:
        return []
    encoders = static_encoders(graph, activations.__contains__)
    line = counts_on_batch(model, graph, encoders, example) if encoders else None
    if line is None:
        return encoders
    warnings.warn(
        f"{type(model).__name__} reads the number of images before its first neurons and uses it behind them ({line}), "
        "where every time step counts; so images are repeated T times from the start, which is correct but slower. "
        "Read the number there, from the tensor at hand (z.shape[0]), to compute the first layers only once",
        stacklevel=3,
    )
    return []


def _of_signals(graph: fx.Graph, activations: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those that are not only called on what does not depend on the input, as where position biases are computed."""
    reached = {node for node in graph.nodes if node.op == "placeholder"}
    called: dict[nn.Module, bool] = {}
    for node in graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
        if node.op == "call_module" and node.target in activations:
            module = activations[node.target]
            called[module] = called.get(module, False) or node in reached
    return {name: module for name, module in activations.items() if called.get(module, True)}


def _warn_of_calls(graph: fx.Graph, activations: Mapping[str, nn.Module]) -> None:
    """Name the activations whose neurons are called at several places, or whose result nobody uses."""
    nodes = [n for n in graph.nodes if n.op == "call_module" and n.target in activations]
    calls = Counter(activations[n.target] for n in nodes)
    names = {module: name for name, module in reversed(list(activations.items()))}
    if unused := [f"{n.target} ({n.meta['line']})" for n in nodes if not n.users]:
        warnings.warn(
            f"these activations only work in place, and nothing reads what they return: {', '.join(unused)}; neurons "
            "do not work in place, so nothing spikes there: write x = self.act(x)",
            stacklevel=3,
        )
    if shared := [f"{names[module]} ({count} calls)" for module, count in calls.items() if count > 1]:
        warnings.warn(
            "these activations are called at several places, which share one layer of neurons with one amplitude and "
            f"threshold: {', '.join(shared[:4])}{', ...' if len(shared) > 4 else ''}; give each place a module of its "
            "own to learn them separately",
            stacklevel=3,
        )


def _by_layer(options: dict[str, Any]) -> dict[str, Any]:
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
            come_last = len(shape) > 2 and layer is not None and layer_rule_of(layer[0]).channel_axis(layer[0]) == -1
            count = None if come_last else shape[1]
            activation = activations[node.target]
            channels[activation] = count if channels.setdefault(activation, count) == count else None
    return channels


def _reshapes_input(graph: fx.Graph, model: nn.Module) -> bool:
    """Whether anything but a layer reads the input, such as a flatten, which would take images as well as vectors."""
    readers = [user for node in graph.nodes if node.op == "placeholder" for user in node.users]
    modules = dict(model.named_modules(remove_duplicate=False))
    return any(n.op != "call_module" or isinstance(modules[n.target], nn.Flatten) for n in readers)


def _input_sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """What the input may look like: the first convolution's channels, or those of timm's configuration, or a vector."""
    known = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if known is not None and len(known) == 1:
        return [tuple(known)]
    channels, height, width = known or (3, 224, 224)
    first_conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first_conv is None:
        first_linear = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
        vectors = [(first_linear.in_features,)] if first_linear is not None and known is None else []
        return [(channels, height, width), *vectors]
    read = first_conv.in_channels
    # a model may rearrange pixels into channels before its first convolution
    return [(read, height, width), (channels, height, width)] if read != channels else [(channels, height, width)]
