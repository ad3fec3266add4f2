"""Trained ANNs by timm: what a spiking network starts from, or learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
from timm.models import load_state_dict
from torch import nn

from ..models.create import check_name

__all__ = ["load_ann"]

_PREFIX = "network.model."  # of a timm model's parameters in a checkpoint of TernarySNNModule


def load_ann(
    name: str,
    weights: str | Path | None = None,
    *,
    num_classes: int,
    in_chans: int = 3,
    fresh_classifier: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Create a model by timm, with ReLU and all, and load its trained weights.

    Args:
        name: A timm model, with or without the tag of its weights, e.g. ``"resnet34"`` or ``"resnet50.a1_in1k"``.
        weights: A file with a state_dict (safetensors or torch, read with ``weights_only``), or a checkpoint of
            :class:`lightning_tspike.TernarySNNModule` that was trained with ``neuron="none"``; None for timm's own
            pretrained weights, which come from the Hugging Face Hub or its cache.
        num_classes: Number of classes K.
        in_chans: Channels C of an image.
        fresh_classifier: Where the weights are for another number of classes, leave their classifier out.
        kwargs: Further arguments of the model.

    Returns:
        The model, in eval mode on the CPU.

    Raises:
        ValueError: No such model (close names are given), or it has no pretrained weights, or the weights are of
            another architecture or, without ``fresh_classifier``, for another number of classes.
        OSError: The weights could not be downloaded or read.
    """
    check_name(name)
    if weights is None:
        return _from_timm(name, num_classes=num_classes, in_chans=in_chans, fresh=fresh_classifier, kwargs=kwargs)
    model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **kwargs)
    if not Path(weights).is_file():
        raise FileNotFoundError(f"there is no file of weights {Path(weights).resolve()}")
    try:
        state = {name.removeprefix(_PREFIX): value for name, value in load_state_dict(str(weights)).items()}
    except Exception as error:  # what is no pickle, or not of this kind, can raise anything
        raise OSError(f"{weights} is damaged or holds no state_dict: {error}") from error
    if fresh_classifier:
        expected, cfg = model.state_dict(), cast("dict[str, Any]", model.pretrained_cfg)
        for key in (f"{cfg['classifier']}.{kind}" for kind in ("weight", "bias")):
            if key in state and key in expected and state[key].shape != expected[key].shape:
                state[key] = expected[key]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not hold the weights of a {name!r} for {num_classes} classes and {in_chans} channels: "
            f"{error}"
        ) from error
    return model.eval()


def _from_timm(name: str, *, num_classes: int, in_chans: int, fresh: bool, kwargs: dict[str, Any]) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name!r}; give the path of a file with a state_dict")
    if config.num_classes != num_classes and not fresh:
        raise ValueError(f"the pretrained weights of {name!r} know {config.num_classes} classes, not {num_classes}")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=num_classes, in_chans=in_chans, **kwargs)
    except Exception as error:  # the Hub's client, its HTTP library and the system each have errors of their own
        raise OSError(
            f"could not load the pretrained weights of {name!r}: {error}\nWithout a network, put them into the "
            "Hugging Face cache beforehand, or give the path of a file with a state_dict"
        ) from error
    return model.eval()
