"""Build a spiking network from names and numbers alone, so that a checkpoint or a config.json can rebuild it."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import asdict

import timm
from timm.layers import to_2tuple
from torch import nn

from ..network.config import OWN, NetworkConfig
from ..network.own import own_network
from ..network.spiking_network import SpikingNetwork
from ..network.swapping import ternarize

__all__ = ["NetworkConfig", "create_network"]

_PARTS = re.compile("[a-z]+|[0-9]+")


def create_network(config: NetworkConfig, model: nn.Module | None = None) -> SpikingNetwork:
    """Create the backbone by timm and ternarize it; weights are freshly initialised.

    Args:
        config: What to build.
        model: Where ``config`` is of a network of your own: an instance of it, which becomes part of the result.

    Returns:
        The network, in train mode, with ``config`` attached.

    Raises:
        ValueError: No such backbone (close names are given), the backbone refuses an argument, or a neuron option is
            out of range; ``config`` is of a network of your own, and there is no ``model``, or the other way round.
    """
    if config.backbone.startswith(OWN):
        if model is None:
            raise ValueError(
                f"this network is of the class {config.backbone.removeprefix(OWN)}, and no file brings a class along; "
                "give an instance: load_from_checkpoint(path, backbone=...) or zoo.load(path, model=...)"
            )
        return own_network(model, asdict(config))
    if model is not None:
        raise ValueError(f"this is a {config.backbone}, which is built by its name: leave the model out")
    check_name(config.backbone)
    try:
        model = timm.create_model(
            config.backbone, num_classes=config.num_classes, in_chans=config.in_chans, **config.backbone_kwargs
        )
    except TypeError as error:
        raise ValueError(
            f"backbone {config.backbone!r} does not take backbone_kwargs {config.backbone_kwargs!r}: {error}"
        ) from error
    _, *native = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    # a transformer takes one size alone; a model of vectors has none beside their length
    sides = to_2tuple(config.backbone_kwargs.get("img_size") or native) if native else ()
    network = ternarize(
        model,
        config.timesteps,
        input_size=(config.in_chans, *sides),
        neuron=config.neuron,
        freeze_cancelled=config.freeze_cancelled,
        **config.neuron_options(),
    )
    network.config = config
    return network


def check_name(name: str) -> None:
    """Let only names in timm's registry pass: a checkpoint or config.json must not send us to a hub or a file.

    Raises:
        ValueError: No such model; the message has close names.
    """
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            architecture = timm.models.get_arch_name(name)
            raise ValueError(f"{error} Known are {timm.list_pretrained(f'{architecture}.*')}") from None
        return
    names = timm.list_models()
    close = _close_names(name, names) or fnmatch.filter(names, f"*{name}*")[:4]
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "timm.list_models() lists them all"
    raise ValueError(f"unknown backbone {name!r}; {hint}")


def _close_names(name: str, names: Sequence[str]) -> list[str]:
    """The four that are most alike: in their letters, and in the words and numbers that they are made of.

    By letters alone ``resnet101_clip`` would be nearer to ``resnet19_cifar`` than ``tspike_resnet19`` is.
    """
    shorts = {known: known.removeprefix("tspike_") for known in names}  # who leaves that out means ours as well
    alike = difflib.get_close_matches(name, {*names, *shorts.values()}, n=50, cutoff=0.6)
    parts = set(_PARTS.findall(name))

    def likeness(known: str) -> float:
        letters = max(difflib.SequenceMatcher(None, name, k).ratio() for k in (known, shorts[known]))
        own = set(_PARTS.findall(shorts[known]))
        return letters + len(parts & own) / len(parts | own)

    return sorted((known for known in names if {known, shorts[known]} & set(alike)), key=likeness, reverse=True)[:4]
