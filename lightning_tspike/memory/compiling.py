"""torch.compile for training: on a CPU it is told to keep less for the backward pass than it would by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["compile_for_training"]

_SHARE = 0.6
"""Of what torch.compile would keep by itself. Norms and sums of two branches are computed again instead, while their
inputs are read anyway: on a CPU, where memory is what a step waits for, that takes no more time
(``python -m benchmarks.train_step``). torch has no public name for this setting; its own tutorials use this one."""


def compile_for_training(model: nn.Module, device: str) -> None:
    """Compile a module in place: it is compiled when it is first called.

    Args:
        model: What is compiled, as by ``model.compile()``.
        device: The kind of device that it will run on, ``"cpu"`` or ``"cuda"``.
    """
    model.compile(backend=_keeping_less if device == "cpu" else "inductor")


def _keeping_less(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    # torch._dynamo takes a second to import: only who compiles waits for it
    from torch._dynamo import lookup_backend
    from torch._functorch import config

    with config.patch(activation_memory_budget=_SHARE):
        return lookup_backend("inductor")(graph, inputs)
