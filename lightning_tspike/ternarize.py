"""From a network with ordinary activations to a spiking one: swap the activations, fold time into the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from . import functional
from .graph import TraceError, static_encoders, trace
from .neurons import TernaryLIF

if TYPE_CHECKING:
    from .models.create import NetworkConfig

__all__ = ["ACTIVATIONS", "SpikingNetwork", "ternarize"]

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
"""Modules that :func:`ternarize` replaces by neurons. Gates (Sigmoid, Softmax, Hardsigmoid) stay."""


class SpikingNetwork(nn.Module):
    """A network of ternary neurons over T time steps, made by :func:`ternarize`.

    Time is folded into the batch, [T*B, ...] with T outermost, so every stateless layer runs as it is and BatchNorm
    sees T*B samples. Layers before the first neuron see the B images of a still batch only once.

    Attributes:
        model: The network, its activations replaced by neurons.
        timesteps: Number of time steps T.
        input_size: (C, H, W) of an image or a frame; H and W only serve as an example to trace the network on.
        encoders: Names of the neurons that end the static prefix; empty where the input must be repeated T times.
        config: What :func:`lightning_tspike.models.create_network` built this from; None for a network of your own.
    """

    def __init__(
        self, model: nn.Module, timesteps: int, *, input_size: tuple[int, int, int], encoders: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps
        self.input_size = input_size
        self.encoders = tuple(encoders)
        self.config: NetworkConfig | None = None

    def neurons(self) -> dict[str, TernaryLIF]:
        """The neurons by their names in ``model``, in the order in which they are registered."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, TernaryLIF)}

    def forward(self, x: Tensor, *, per_step: bool = False) -> Tensor:
        """Classify still images or sequences of frames.

        Args:
            x: Images [B, C, H, W], shown at every time step, or frames [B, T, C, H, W].
            per_step: Return the logits of every time step.

        Returns:
            Logits [B, K], the mean over time, or [T, B, K] with ``per_step``.

        Raises:
            ValueError: ``x`` has another number of dimensions, channels or time steps than the network.
        """
        logits = self.model(self.fold_time(x))  # [T*B, K]
        logits = logits.unflatten(0, (self.timesteps, logits.shape[0] // self.timesteps))  # [T, B, K]
        return logits if per_step else logits.mean(0)

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
    amplitude: Literal["layer", "fixed"] = "layer",
    decay: float = functional.DECAY,
    threshold: float = functional.THRESHOLD,
    detach_reset: bool = False,
    input_size: tuple[int, int, int] | None = None,
) -> SpikingNetwork:
    """Turn a network into a spiking one, in place: each activation module becomes a :class:`TernaryLIF`.

    Args:
        model: Any module that maps images [B, C, H, W] to logits [B, K] and whose activations are modules, such as
            timm's. It is changed and becomes part of the result.
        timesteps: Number of time steps T.
        amplitude: ``"layer"`` learns one spike amplitude per neuron layer, ``"fixed"`` keeps it at 1.
        decay: Membrane decay tau of every neuron.
        threshold: Firing threshold theta of every neuron.
        detach_reset: Cut the gradient through the reset.
        input_size: (C, H, W) of an example to trace the model on; default is what timm's model configuration says,
            with the channels of the first convolution.

    Returns:
        The network: [B, C, H, W] or [B, T, C, H, W] -> [B, K].

    Raises:
        ValueError: The model has no activation module (:data:`ACTIVATIONS`), or a neuron option is out of range.
    """
    activations = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, ACTIVATIONS)}
    if not activations:
        raise ValueError(
            f"{type(model).__name__} has no activation modules to replace by neurons; activations called as "
            f"functions (torch.relu, F.relu) must be turned into modules ({', '.join(a.__name__ for a in ACTIVATIONS)})"
        )
    # one neuron per activation, however many names it has
    neurons = {
        activation: TernaryLIF(
            timesteps, amplitude=amplitude, decay=decay, threshold=threshold, detach_reset=detach_reset
        )
        for activation in dict.fromkeys(activations.values())
    }
    input_size = input_size or _input_size(model)
    weight = next(model.parameters(), torch.empty(0))
    neurons = {activation: neuron.to(weight.device, weight.dtype) for activation, neuron in neurons.items()}
    try:
        example = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
        encoders = static_encoders(trace(model, example), activations.__contains__)
    except TraceError:
        encoders = []  # still right, only slower: the input is repeated from the start
    for name, activation in activations.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, neurons[activation])
    return SpikingNetwork(model, timesteps, input_size=input_size, encoders=encoders)


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    channels, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    first_conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (first_conv.in_channels if first_conv is not None else channels, height, width)
