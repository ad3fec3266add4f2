"""Random streams that depend on seed, epoch, batch and rank alone: a resumed run repeats an uninterrupted one."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["place_to_come", "run_seed", "seed_all", "stream_seed"]


def run_seed() -> int | None:
    """The seed given to Lightning's ``seed_everything``, or None if it was not called: then nothing shall repeat."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def stream_seed(*numbers: int) -> int:
    """A 32-bit seed for a seed, an epoch, a rank and the like; neighbouring numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(*numbers: int) -> None:
    """Let Python, numpy and torch draw the random numbers of a stream, see :func:`stream_seed`."""
    seed = stream_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def place_to_come(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch and batch that a fit begins with when it goes on from this checkpoint of Lightning's; 0, 0 for weights."""
    loops = checkpoint.get("loops") or {}
    if "fit_loop" not in loops:
        return 0, 0
    epoch = loops["fit_loop"]["epoch_progress"]["current"]
    batch = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    return epoch["processed"], batch if epoch["processed"] < epoch["started"] else 0
