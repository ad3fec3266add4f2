"""Weights of the published code, broken or made to do harm: a source of cases for ``benchmarks.hostile``."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tspike.models import ForeignWeightsError, import_official

from .hostile import Source
from .hostile_checkpoints import call, flip, truncate, zipped
from .hostile_folders import IMAGES


def weights() -> dict[str, Tensor]:
    """A state_dict as the published code would have it, for one block."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv1.pool.weight": [4, 1, 3, 3], "fc.conv.weight": [3, 4], "fc.conv.bias": [3],
              "layer1.0.conv1.pool.weight": [4, 4, 3, 3], "layer1.0.conv2.pool.weight": [4, 4, 3, 3]}  # fmt: skip
    for norm in ("bn1.conv", "layer1.0.bn1.bn", "layer1.0.bn2.bn"):
        shapes |= {f"{norm}.{part}": [4] for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"model.{name}": torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def made(scratch: Path) -> Path:
    """A sound file."""
    torch.save({"state_dict": weights()}, scratch / "a.pth")
    return scratch / "a.pth"


@functools.cache
def expected() -> Tensor:
    """What the sound network says of the images."""
    return import_official(weights())(IMAGES)


def levels(file: Path, rng: random.Random) -> None:
    """Checkpoints in checkpoints, without end."""
    itself: dict[str, Any] = {}
    itself["state_dict"] = {"model": itself}
    nested: Any = weights()
    for _ in range(rng.choice([10, 200])):
        nested = {"model": nested}
    torch.save(rng.choice([itself, nested]), file)


def entries(file: Path, rng: random.Random) -> None:
    """Many tensors, large ones, spoilt ones, odd names."""
    spoilt: dict[Any, Any] = weights()
    name = rng.choice(list(spoilt))
    kind = rng.choice(["many", "blocks", "expanded", "nan", "number", "names", "missing", "wide"])
    if kind == "many":
        spoilt |= {f"model.layer1.{i}.conv2.pool.weight": torch.zeros(1, 1, 1, 1) for i in range(20_000)}
    elif kind == "blocks":
        spoilt |= {f"model.layer1.{i}.conv2.pool.weight": torch.zeros(4, 4, 1, 1) for i in range(3000)}
    elif kind == "expanded":
        spoilt[name] = torch.zeros(1).expand(*([10**6] * rng.choice([1, 2])))
    elif kind == "nan":
        spoilt[name] = torch.full_like(spoilt[name], float("nan"))
    elif kind == "number":
        spoilt[name] = 5
    elif kind == "names":
        spoilt[rng.choice([5, "", ".", "model", "layer" + "9" * 5000 + ".0.conv2.weight", "x" * 10**6])] = torch.ones(1)
    elif kind == "missing":
        del spoilt[name]
    else:
        spoilt["model.fc.conv.weight"] = torch.zeros(1).expand(25_000_000, 4)
    torch.save(spoilt, file)


SOURCE = Source(
    "imports",
    made,
    (flip, truncate, call, zipped, levels, entries),
    lambda file: import_official(file)(IMAGES),
    lambda logits: torch.equal(logits, expected()),
    (ForeignWeightsError,),
    may_pass=(flip,),
)
