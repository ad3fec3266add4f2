"""Networks of the user's own, which no name in timm's registry stands for: what files say of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..neurons import NEURONS, SpikingNeuron
from .config import OWN, NetworkConfig
from .spiking_network import SpikingNetwork
from .swapping import ternarize

__all__ = ["own_network"]


def own_network(model: nn.Module, options: dict[str, Any]) -> SpikingNetwork:
    """A network of the user's own, made spiking if it is not yet, with a ``config`` that says what can be said of it.

    Args:
        model: Any module that :func:`lightning_tspike.ternarize` takes, or what that function gave.
        options: Fields of :class:`lightning_tspike.network.NetworkConfig`. What the model knows itself (its classes and
            channels; a spiking one also its time steps and neurons) may only be repeated.

    Raises:
        TypeError: It is no module.
        ValueError: An option says otherwise than the model, or is out of range.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"backbone must be the name of a timm model or a module, got {model!r}")
    options = {key: value for key, value in options.items() if key != "backbone"}
    if options.pop("backbone_kwargs", None):
        raise ValueError("backbone_kwargs are for backbones by name: a model of your own has its arguments already")
    if isinstance(model, SpikingNetwork):
        if model.config is None:
            model.config = _config_of(model)
        known = model.config
    else:
        asked = NetworkConfig(_name(model), **options)
        model = ternarize(
            model,
            asked.timesteps,
            neuron=asked.neuron,
            freeze_cancelled=asked.freeze_cancelled,
            **asked.neuron_options(),
        )
        known = replace(asked, num_classes=_count_classes(model), in_chans=model.input_size[0])
        model.config = known
    default = NetworkConfig(known.backbone)
    for key, value in options.items():
        # these three come along with their defaults where the user has not said them
        is_unsaid = key in ("num_classes", "timesteps", "in_chans") and value == getattr(default, key)
        if value != getattr(known, key) and not is_unsaid:
            raise ValueError(
                f"{key}={value!r} does not fit the network that was given, which has {getattr(known, key)!r}: leave "
                f"{key} out"
            )
    return model


def _name(model: nn.Module) -> str:
    return f"{OWN}{type(model).__module__}.{type(model).__qualname__}"


def _count_classes(network: SpikingNetwork) -> int:
    """K, by running an example."""
    weight = next(network.parameters(), torch.empty(0))
    was_training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, *network.input_size).to(weight))
    finally:
        network.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"the network gives a {type(logits).__name__}, not logits [B, K]: it cannot be trained here")
    return logits.shape[-1]


def _config_of(network: SpikingNetwork) -> NetworkConfig:
    """What can be read off a network that :func:`lightning_tspike.ternarize` made; its first neurons speak for all."""
    neuron = next(iter(network.neurons().values()), None)  # none in the ANN itself
    kind = {"neuron": "none"} if neuron is None else {"neuron": _kind(neuron), **vars(neuron.options)}
    return NetworkConfig(
        _name(network.model),
        num_classes=_count_classes(network),
        in_chans=network.input_size[0],
        timesteps=network.timesteps,
        **kind,
    )


def _kind(neuron: SpikingNeuron) -> str:
    def fixed(kind: Any) -> dict[str, Any]:
        return kind.keywords if isinstance(kind, partial) else {}

    # the most specific name first
    for name, kind in sorted(NEURONS.items(), key=lambda item: -len(fixed(item[1]))):
        made: Any = kind.func if isinstance(kind, partial) else kind
        if type(neuron) is made and all(getattr(neuron, key) == value for key, value in fixed(kind).items()):
            return name
    raise ValueError(f"{type(neuron).__name__} is not registered: add it to lightning_tspike.neurons.NEURONS")
