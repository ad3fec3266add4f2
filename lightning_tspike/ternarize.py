"""From a network with ordinary activations to a spiking one: swap the activations, fold time into the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from typing_extensions import Unpack

from . import features
from .gauge import GaugeClasses, TrainingScales
from .graph import TraceError, static_encoders, trace
from .hooks import is_watched
from .memory import MEMORY, Memory, keeping
from .neurons import NEURONS, NeuronOptions, SpikingNeuron
from .operations import channel_axis, layer_of
from .report import NetworkReport
from .rewrite import Rewrites

if TYPE_CHECKING:
    from .models.create import NetworkConfig

__all__ = ["ACTIVATIONS", "SpikingNetwork", "ternarize"]

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
"""Modules that :func:`ternarize` replaces by neurons. Gates (Sigmoid, Softmax, Hardsigmoid) stay."""


class SpikingNetwork(nn.Module):
    """A network of spiking neurons over T time steps, made by :func:`ternarize`.

    Time is folded into the batch, [T*B, ...] with T outermost, so every stateless layer runs as it is and BatchNorm
    sees T*B samples. Layers before the first neuron see the B images of a still batch only once.

    Attributes:
        model: The network, its activations replaced by neurons.
        timesteps: Number of time steps T.
        input_size: (C, H, W) of an image or a frame; H and W only serve as an example to trace the network on.
        encoders: Names of the neurons that end the static prefix; empty where the input must be repeated T times.
        rewrites: Structural changes by folding since then.
        config: What :func:`lightning_tspike.models.create_network` built this from; None for a network of your own.
        pretrained_cfg: Of trained weights, as timm has it: ``architecture``, ``num_classes``, and where they are known
            ``input_size``, ``mean``, ``std``, ``label_names`` ...; empty otherwise.
    """

    def __init__(
        self, model: nn.Module, timesteps: int, *, input_size: tuple[int, int, int], encoders: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps
        self.input_size = input_size
        self.encoders = tuple(encoders)
        self._memory: Memory = "full"
        self.config: NetworkConfig | None = None
        self.rewrites = Rewrites()
        self.pretrained_cfg: dict[str, Any] = {}

    @property
    def memory(self) -> Memory:
        """What a training step keeps for its backward pass: ``"full"``, ``"packed"`` or ``"lean"``; can be set.

        See :mod:`lightning_tspike.memory`; gradients are the same.

        Raises:
            ValueError: It is set to something else.
        """
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        if memory not in MEMORY:
            raise ValueError(f"memory must be one of {MEMORY}, got {memory!r}")
        self._memory = memory

    @property
    def num_classes(self) -> int:
        """Number of classes K.

        Raises:
            AttributeError: The model does not say.
        """
        return self.model.num_classes  # type: ignore[return-value]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one, to train on other classes; timm's models know how.

        Args:
            num_classes: Their number.

        Raises:
            ValueError: ``num_classes`` is less than 1, or the model has no ``reset_classifier``.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
        reset: Any = getattr(self.model, "reset_classifier", None)
        if reset is None:
            raise ValueError(
                f"{type(self.model).__name__} has no reset_classifier, as timm's models have: replace its head"
            )
        reset(num_classes)
        weight = next(self.model.parameters())
        self.model.to(device=weight.device, dtype=weight.dtype)  # timm makes the new layer on the CPU, in float32
        if self.config is not None:
            self.config = replace(self.config, num_classes=num_classes)
        self.pretrained_cfg = {k: v for k, v in self.pretrained_cfg.items() if k != "label_names"}
        if self.pretrained_cfg:
            self.pretrained_cfg["num_classes"] = num_classes

    def neurons(self) -> dict[str, SpikingNeuron]:
        """The neurons by their names in ``model``, in the order in which they are registered."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, SpikingNeuron)}

    def report(self) -> NetworkReport:
        """What becomes of each amplitude: learned or not, shared with whom, live or cancelled, folded or kept.

        Raises:
            TraceError: The model could not be traced.
        """
        weight = next(self.parameters(), torch.empty(0))
        example = torch.zeros(1, *self.input_size, device=weight.device, dtype=weight.dtype)
        graph = trace(self.model, self.fold_time(example))
        return NetworkReport.of(GaugeClasses(graph, self.model), TrainingScales(graph, self.model))

    def forward(self, x: Tensor, *, per_step: bool = False) -> Tensor:
        """Classify still images or sequences of frames.

        Args:
            x: Images [B, C, H, W], shown at every time step, or frames [B, T, C, H, W].
            per_step: Return the logits of every time step.

        Returns:
            Logits [B, K], the mean over time, or [T, B, K] with ``per_step``. Where the model gives a list or a dict,
            as timm's with ``features_only=True`` do: a list or a dict of such tensors.

        Raises:
            ValueError: ``x`` has another number of dimensions, channels or time steps than the network; or the model
                gives a tensor that has not one row for each image and time step.
        """
        with keeping(self):
            # nn.Module.compile() leaves forward as it is: hooks are called there
            run = self.model.forward if is_watched() else self.model
            logits = run(self.fold_time(x))  # [T*B, K]
        return features.over_time(logits, self.timesteps, len(x), per_step=per_step)

    def forward_intermediates(self, x: Tensor, indices: Any = None, *, per_step: bool = False, **options: Any) -> Any:
        """Feature maps of several levels; which there are says ``network.model.feature_info``.

        In a folded network a map is that of the unfolded one divided by amplitudes that the next layers have taken up.

        Args:
            x: As for ``forward``.
            indices: Which levels: their numbers; a number for the last so many; None for all.
            per_step: Keep the time steps apart.
            options: What ``forward_intermediates`` of the model, one of timm's, takes besides, e.g. ``stop_early`` or
                ``intermediates_only``.

        Returns:
            What the model's ``forward_features`` gives, and a list of maps [B, C, H', W'], each the mean over time;
            with ``per_step``, [T, B, C, H', W']. With ``intermediates_only=True``, the list alone.

        Raises:
            ValueError: ``x`` is not for this network, or the model has no ``forward_intermediates``.
        """
        return features.forward_intermediates(self, x, indices, per_step=per_step, **options)

    def fold_time(self, x: Tensor) -> Tensor:
        """What ``model`` is fed for ``x`` (see ``forward``): [T*B, C, H, W], or [B, C, H, W] before a static prefix."""
        self._check(x)
        is_static = x.ndim == 4 and bool(self.encoders)
        for name in self.encoders:
            # Set at every call, as train() and eval() set a mode; it must outlast the call, because activation
            # checkpointing runs the layers again in the backward pass.
            neuron: Any = self.model.get_submodule(name)
            if neuron.static_input != is_static:
                neuron.static_input = is_static
        if x.ndim == 5:
            return x.transpose(0, 1).flatten(0, 1)  # [B, T, C, H, W] -> [T*B, C, H, W]
        return x if is_static else x.repeat(self.timesteps, 1, 1, 1)  # [B, C, H, W] -> [T*B, C, H, W]

    def _check(self, x: Tensor) -> None:
        channels = self.input_size[0]
        if x.ndim not in (4, 5) or x.shape[-3] != channels:
            raise ValueError(
                f"input must be images [B, {channels}, H, W] or frames [B, T={self.timesteps}, {channels}, H, W], "
                f"got shape {tuple(x.shape)}; a network for another number of channels is built with in_chans="
            )
        if x.ndim == 5 and x.shape[1] != self.timesteps:
            raise ValueError(
                f"this network runs {self.timesteps} time steps, got frames for {x.shape[1]} (shape {tuple(x.shape)}); "
                f"build it with timesteps={x.shape[1]} or bring {self.timesteps} frames"
            )


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
