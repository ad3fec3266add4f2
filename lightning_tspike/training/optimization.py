"""The optimizer and its learning-rate schedule, both by timm."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from timm.optim import list_optimizers

__all__ = ["OptimizerOptions"]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the loss is minimised.

    Attributes:
        opt: Optimizer, a name that timm.optim knows.
        lr: Learning rate at its peak.
        momentum: Momentum, for the optimizers that have one.
        weight_decay: Weight decay; amplitudes, biases and batch norms are exempt.
        sched: Learning-rate schedule, a name that timm.scheduler knows; ``"none"`` for none. It is updated after every
            epoch, or after every step where the trainer has ``max_steps`` or ``max_time`` alone. ``"triangular"``,
            linearly up and linearly down to 0, is updated after every step.
        warmup_epochs: Epochs over which the learning rate rises linearly to its peak; parts of epochs for
            ``"triangular"`` alone.

    Raises:
        ValueError: timm has no such optimizer; the message has close names.
    """

    opt: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sched: str = "cosine"
    warmup_epochs: float = 0

    def __post_init__(self) -> None:
        known = [str(name) for name in list_optimizers()]
        if self.opt.lower().removeprefix("lookahead_") not in known:
            close = difflib.get_close_matches(self.opt, known, n=3) or known
            raise ValueError(f"timm has no optimizer {self.opt!r}; it has {', '.join(close)}")
