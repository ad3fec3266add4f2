"""Random streams that depend on seed, epoch and rank alone, so that a resumed run repeats an uninterrupted one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["epoch_seed", "epoch_to_come", "run_seed"]


def run_seed() -> int | None:
    """The seed given to Lightning's ``seed_everything``, or None if it was not called: then nothing shall repeat."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A 32-bit seed for one epoch on one process; neighbouring arguments give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


def epoch_to_come(checkpoint: Mapping[str, Any]) -> int:
    """The epoch that a fit begins with when it goes on from this checkpoint of Lightning's; 0 for mere weights."""
    loops = checkpoint.get("loops") or {}
    return loops["fit_loop"]["epoch_progress"]["current"]["processed"] if "fit_loop" in loops else 0
