"""Build a network that a file describes, and stop as soon as it is larger than the weights in that file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..files.bounds import MOST_TENSORS, check_frames, plain
from ..network.config import OWN, NetworkConfig
from ..network.spiking_network import SpikingNetwork
from .create import check_name, create_network

__all__ = ["create_within"]

_MOST = 1 << 16  # of any number and any list in backbone_kwargs


def create_within(config: NetworkConfig, numbers: int, model: nn.Module | None = None) -> SpikingNetwork:
    """As :func:`lightning_tspike.models.create_network`, but no larger than the weights that are there.

    Random numbers of a training run are not used up: the initial weights are replaced at once.

    Args:
        config: What a file says the network is.
        numbers: How many numbers its weights have.
        model: As for ``create_network``; what the user gives is not bounded.

    Raises:
        ValueError: The network is larger, has more time steps or larger inputs than any; otherwise as
            ``create_network``. What a hostile argument does to a model's constructor can be anything else.
    """
    _check_options(plain(config.backbone_kwargs))
    check_frames([config.in_chans], config.timesteps)
    if config.backbone.startswith(OWN) or model is not None:
        return create_network(config, model)
    check_name(config.backbone)
    options = {"num_classes": config.num_classes, "in_chans": config.in_chans, **config.backbone_kwargs}
    limit = 2 * numbers + 10_000  # twice: folding can have merged norms into layers
    # some models compute with the numbers of tensors, which have none here
    not_on_meta = suppress(NotImplementedError, RuntimeError)
    with _at_most(limit), not_on_meta, torch.device("meta"):
        model = timm.create_model(config.backbone, **options)
        _, *native = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        sides = to_2tuple(config.backbone_kwargs.get("img_size") or native) if native else ()
        check_frames([config.in_chans, *sides], config.timesteps)
    with _at_most(limit), torch.random.fork_rng(devices=[]):
        return create_network(config)


def _check_options(options: object) -> None:
    """Refuse sizes that no backbone has, before a model counts up to them."""
    if isinstance(options, Mapping):
        options = list(options.values())
    if isinstance(options, list):
        if len(options) > _MOST:
            raise ValueError(f"has a list of {len(options)} in 'backbone_kwargs', no backbone has more than {_MOST}")
        for option in options:
            _check_options(option)
    elif isinstance(options, (int, float)) and not -_MOST <= options <= _MOST:
        raise ValueError(f"has {options!r} in 'backbone_kwargs', no backbone has a number beyond {_MOST}")


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Stop with a ValueError as soon as modules that are built in here have more numbers than that."""
    count, tensors = 0, 0

    def look(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal count, tensors
        count += parameter.numel() + 1 if parameter is not None else 1
        tensors += 1
        if count > limit or tensors > MOST_TENSORS:
            raise ValueError(
                f"describes a network of more than {limit} numbers or {MOST_TENSORS} tensors, far more than its "
                "weights have"
            )

    hook = register_module_parameter_registration_hook(look)
    try:
        yield
    finally:
        hook.remove()
