"""Load a network, or what makes its input, from wherever it is (:mod:`lightning_tspike.store.source`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from .._checks import check_timesteps
from ..data.event_frames import frames_transform
from ..data.image_transforms import any_image_transform
from ..files.input_spec import InputSpec
from ..files.weights import Precision
from ..inference.integer_network import integer
from ..network.spiking_network import SpikingNetwork
from .catalog import ZooError
from .manifest import Manifest
from .source import open_source

__all__ = ["Runtime", "load", "load_with_config", "transform_of", "transforms"]

Runtime = Literal["float32", "integer"]


def load(
    name_or_path: str | os.PathLike[str],
    *,
    folded: bool = True,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    timesteps: int | None = None,
    model: torch.nn.Module | None = None,
    runtime: Runtime = "float32",
) -> SpikingNetwork:
    """Load a network, ready to classify.

    Args:
        name_or_path: Name of an entry; ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hugging Face Hub; a network's
            folder, such as FoldExport writes; or a checkpoint, which is folded. Names of the zoo go first: write
            ``./NAME`` for a folder of that name.
        folded: False loads the network before folding, to train it on, where that was published.
        precision: Which of the files of weights to read, ``"float32"``, ``"bfloat16"`` or ``"int8"``; by default those
            that the entry names, or the most precise.
        device: Where to put the network; default is the CPU.
        dtype: What to convert it to; it is float32 whatever the precision of the file.
        timesteps: Number of time steps T for which it is shown an image; default is that of its training.
        model: Where the network is of a class of your own, which no file brings along: an instance of it.
        runtime: ``"integer"`` makes it run on integers, on the CPU (:func:`lightning_tspike.inference.integer`).

    Returns:
        The network in eval mode: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, K]. Its
        ``pretrained_cfg`` has what is known of its input and classes.

    Raises:
        ValueError: ``timesteps`` is no whole number of at least 1; ``runtime`` is another, or an integer one is wanted
            on another device or in another dtype than the CPU and float32.
        ZooError: There is nothing of that name, or the entry is planned and has no weights yet, or there is no unfolded
            network.
        lightning_tspike.store.hub.HubError: The Hub cannot be reached, or does not have it.
        lightning_tspike.store.folder.FolderError: The folder is incomplete, damaged or was changed.
        lightning_tspike.store.checkpoint.CheckpointError: The file is no checkpoint.
    """
    if timesteps is not None:
        check_timesteps(timesteps)  # before anything is fetched
    if runtime not in get_args(Runtime):
        raise ValueError(f"runtime must be one of {list(get_args(Runtime))}, got {runtime!r}")
    if runtime == "integer" and (torch.device(device or "cpu").type != "cpu" or dtype not in (None, torch.float32)):
        raise ValueError(f"the integer runtime is for the CPU and float32 inputs, got device={device}, dtype={dtype}")
    network, _ = load_with_config(name_or_path, folded=folded, precision=precision, model=model)
    if timesteps is not None:
        network.timesteps = timesteps
    with torch.inference_mode(False):
        network = network.to(device=device, dtype=dtype)
        return integer(network) if runtime == "integer" else network


def load_with_config(
    name_or_path: str | os.PathLike[str],
    *,
    folded: bool = True,
    precision: Precision | None = None,
    model: torch.nn.Module | None = None,
) -> tuple[SpikingNetwork, Manifest]:
    """As :func:`load`, and the contents of its ``config.json`` (of a checkpoint: what that would be)."""
    return open_source(name_or_path).read(folded=folded, precision=precision, model=model)


def transforms(name_or_path: str | os.PathLike[str]) -> Callable[[Any], torch.Tensor]:
    """What makes a network's input of new data, as in its training's evaluation.

    Args:
        name_or_path: As for :func:`load`.

    Returns:
        A function from a PIL image to a tensor [C, H, W]; or, of a network for event cameras, from tonic's events (an
        array with fields x, y, t, p) to frames [T, P, H, W].

    Raises:
        ZooError: The preprocessing is not known; otherwise as :func:`load`.
    """
    return transform_of(open_source(name_or_path).read_input_spec(), os.fspath(name_or_path))


def transform_of(spec: InputSpec | None, name: str) -> Callable[[Any], torch.Tensor]:
    """As :func:`transforms`, of a specification that was read already from ``name``."""
    spec = spec or InputSpec()
    try:
        return any_image_transform(spec) if spec.frames is None else frames_transform(spec)
    except ValueError as error:
        raise ZooError(f"{name} does not say what its input is: {error}") from error
