"""Folders that say odd things of their input, a source of cases for ``benchmarks.hostile``."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightning_tspike import zoo
from lightning_tspike.store.folder import FolderError
from lightning_tspike.store.manifest import seal

from .hostile import Source
from .hostile_folders import CONFIG, ORIGINAL, copied

IMAGE = Image.linear_gradient("L")


@functools.cache
def expected() -> Tensor:
    """What the sound one makes of the image."""
    return zoo.transforms(ORIGINAL)(IMAGE)


def entry(folder: Path, rng: random.Random) -> None:
    """One entry is odd."""
    big = 10 ** rng.choice([5, 6, 9, 15, 30])
    numbers = rng.choice([[], [0.0], [-1.0], ["x"], [1e400], [0.1] * 7, "x", 5, None, [None], {"a": 1}, [10**400]])
    change(folder, *rng.choice([
        ("input_size", rng.choice([
            [1, 65536, 65536], [1, big, 8], [big, 8, 8], [1, 8], [1, 8, 8, 8], [1, 0, 8], "x", None,
        ])),
        ("input_size", [1.0, 8, 8]), ("std", numbers), ("mean", numbers if numbers not in ([0.0], [-1.0]) else None),
        ("interpolation", rng.choice(["", "os.system", 5, None, [], {}, "BILINEAR", "x" * 10**5])),
        ("crop_pct", rng.choice([0, -1, 1e-9, 1e-300, 1e-3, 7, "x", None, [], big])),
    ]))  # fmt: skip


def frames(folder: Path, rng: random.Random) -> None:
    """Events are to be cut into odd frames."""
    sound = {"timesteps": 4, "slice_by": "time", "sensor_size": [8, 8, 1]}
    big = 10 ** rng.choice([5, 6, 9, 30])
    key, value = rng.choice([
        ("timesteps", rng.choice([0, -1, big, "4", None, 1.5, True])),
        ("slice_by", rng.choice(["", "os", None, 5, []])),
        ("sensor_size", rng.choice([[big, big, 2], [8, 8], [0, 8, 1], "x", None, [8, 8, 1.5], [8, 8, big]])),
    ])  # fmt: skip
    odd = {**sound, key: value}
    change(folder, "frames", rng.choice([odd, odd, odd, 5, [], None, {}, {**sound, "more": 1}]))


def whole(folder: Path, rng: random.Random) -> None:
    """All of it is odd."""
    nested = json.loads("[" * 500 + "]" * 500)
    change(
        folder, None, rng.choice([{}, {"input_size": [1, 8, 8]}, {"a": nested}, {"mean": [0.5], "std": [1.0]}, None])
    )


def change(folder: Path, key: str | None, value: object) -> None:
    """Say something else of the input, or of one entry, and seal it as its author would."""
    config = json.loads((folder / CONFIG).read_text())
    if key is None:
        config["preprocessing"] = value
    else:
        config["preprocessing"][key] = value
    (folder / CONFIG).write_text(json.dumps(seal(config)))


SOURCE = Source(
    "transforms",
    copied,
    (entry, frames, whole),
    lambda folder: zoo.transforms(folder)(IMAGE),
    lambda x: torch.equal(x, expected()),
    (FolderError, zoo.ZooError),
)
