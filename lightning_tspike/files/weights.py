"""Weights in a safetensors file: at which precisions they are kept, and reading a file that anyone may have made.

============  ==============================  =================================================================
precision     file                            what is in it
============  ==============================  =================================================================
``float32``   ``model.safetensors``           every tensor as it is
``bfloat16``  ``model.bfloat16.safetensors``  weights of convolutions and linear layers rounded to bfloat16
``int8``      ``model.int8.safetensors``      those weights as round(w / scale), and ``NAME:scale``, for each output
                                              channel its largest absolute weight / 127
============  ==============================  =================================================================

Norms, biases and thresholds are kept in float32 in all three: they are few. Reading gives float32 from each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

__all__ = [
    "FILES",
    "PRECISIONS",
    "FolderError",
    "Precision",
    "decode",
    "encode",
    "file_facts",
    "numbers_in",
    "own_file",
    "read_weights",
    "to_int8",
    "unusable",
]

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FILES: dict[Precision, str] = {
    "float32": "model.safetensors",
    "bfloat16": "model.bfloat16.safetensors",
    "int8": "model.int8.safetensors",
}
_SCALE = ":scale"


class FolderError(ValueError):
    """A folder does not hold a network; the message names the file, what is wrong with it and the way out."""


def encode(weights: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """What a file of this precision holds of a network's state_dict."""
    encoded: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
        if precision == "bfloat16" and _is_rounded(tensor):
            tensor = tensor.bfloat16()
        elif precision == "int8" and _is_rounded(tensor):
            tensor, encoded[name + _SCALE] = to_int8(tensor)
        encoded[name] = tensor.contiguous().clone()
    return encoded


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [out, ...] as whole numbers from -127 to 127 and a scale for each output channel [out]."""
    largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)  # [out, 1, ...]
    # a channel without weights has scale 1
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (weight / scale).round().to(torch.int8), scale.flatten()


def decode(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The state_dict of a network from what a file holds: the inverse of :func:`encode`, up to rounding.

    Raises:
        FolderError: A tensor has a type that no file of this package has, or scales do not fit.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE):
            if tensors.get(name.removesuffix(_SCALE), tensor).dtype != torch.int8:
                raise FolderError(f"{file}: {name} scales no tensor of int8")
            continue
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + _SCALE)
            if scale is None or scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
                raise FolderError(f"{file}: {name} is int8 and has no float32 {name}{_SCALE} {list(tensor.shape[:1])}")
            tensor = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        elif tensor.dtype not in (torch.float32, torch.int64):
            raise FolderError(f"{file}: {name} has type {tensor.dtype}, which no file of lightning-tspike has")
        weights[name] = tensor
    return weights


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights in a file, of whichever precision.

    Raises:
        FolderError: It is missing or damaged.
    """
    own_file(file)
    try:
        return decode(load_file(file), file)
    except (SafetensorError, OSError, OverflowError) as error:
        raise FolderError(f"{file} is damaged ({error}); export or download the folder again") from error


def numbers_in(file: Path) -> int:
    """How many numbers the tensors of a file have, by its header alone.

    Raises:
        FolderError: It is damaged.
    """
    try:
        with safe_open(own_file(file), framework="pt") as tensors:
            return sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError, OverflowError) as error:
        raise FolderError(f"{file} is damaged ({error}); export or download the folder again") from error


def unusable(weights: Mapping[str, Tensor]) -> list[str]:
    """What no network can compute with, a text each. A neuron is silent behind it, so the logits need not tell."""
    faults = []
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            faults.append(f"{name} holds NaN or infinite values")
        elif name.endswith("running_var") and (tensor < 0).any():
            faults.append(f"{name} holds negative variances")
    return faults


def own_file(file: Path) -> Path:
    """The file, if it is a regular one of this folder, or of the Hub's cache, whose folders hold links to ``blobs/``.

    Raises:
        FolderError: It is missing, no regular file, or a link to somewhere else.
    """
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a link to nothing or to itself
        raise FolderError(f"{file} is missing: a network's folder holds config.json and model.safetensors") from error
    if not target.is_file():
        raise FolderError(f"{file} is not a regular file: a network's folder holds config.json and model.safetensors")
    home = file.parent.resolve()
    cached = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
    if target.parent not in (home, *cached):
        raise FolderError(f"{file} is a link to {target}, outside of its folder: copy the file there instead")
    return file


def file_facts(file: Path) -> dict[str, Any]:
    """``{"sha256": of the contents, "size": in bytes}``."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "size": file.stat().st_size}


def _is_rounded(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2
