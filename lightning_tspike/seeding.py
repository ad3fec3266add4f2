"""Random streams that depend on seed, epoch and rank alone, so that a resumed run repeats an uninterrupted one."""

from __future__ import annotations

import os

import numpy as np

__all__ = ["epoch_seed", "run_seed"]


def run_seed() -> int | None:
    """The seed given to Lightning's ``seed_everything``, or None if it was not called: then nothing shall repeat."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A 32-bit seed for one epoch on one process; neighbouring arguments give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
