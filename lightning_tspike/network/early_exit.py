"""Decide as soon as a decision is sure: images that are leave the batch, and their other time steps are not run."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .stepping import StepNetwork, Traceable

__all__ = ["Decision", "classify"]


@dataclass(frozen=True)
class Decision:
    """What a network has decided on a batch and how soon; tensors of shape [B], where the images are.

    Attributes:
        classes: The class of each image, int64.
        confidence: Its probability: the greatest of the softmax of the logits' mean over the time steps that were run.
        steps: How many time steps were run for each image, int64.
    """

    classes: Tensor
    confidence: Tensor
    steps: Tensor


@torch.no_grad()
def classify(network: Traceable, x: Tensor, confidence: float, timesteps: int | None) -> Decision:
    """See :meth:`lightning_tspike.SpikingNetwork.classify`."""
    if isinstance(confidence, bool) or not isinstance(confidence, numbers.Real) or not 0 <= confidence <= 1:
        raise ValueError(f"confidence must be a probability between 0 and 1, got {confidence!r}")
    most = network.call(x, timesteps).timesteps
    frames = x if x.ndim == len(network.input_size) + 2 else x[:, None].expand(-1, most, *x.shape[1:])
    step = _step_of(network, frames)
    state = step.initial_state(len(x))
    # where the model makes a frame into several rows of a batch, it is not known which are whose
    can_leave = all(rows == 1 for rows, *_ in step.sites.values())
    classes, steps = torch.zeros(2, len(x), dtype=torch.int64, device=x.device)
    sure = torch.zeros(len(x), device=x.device)
    there = torch.arange(len(x), device=x.device)  # the images in the batch
    is_open = torch.ones_like(there, dtype=torch.bool)  # which of them are not decided yet
    total: Tensor | float = 0.0
    for t in range(1, most + 1):
        logits, state = step(frames[there, t - 1], state)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError("only a network that gives logits [B, K] of two classes or more can be sure of one")
        total = total + logits.to(torch.promote_types(logits.dtype, torch.float32))
        probability, best = (total / t).softmax(1).max(1)
        ends = is_open & (probability >= confidence) if t < most else is_open
        who = there[ends]
        classes[who], sure[who], steps[who] = best[ends], probability[ends].to(sure.dtype), t
        is_open = is_open & ~ends
        if not is_open.any():
            break
        if can_leave and len(who):
            state = {site: memory[is_open] for site, memory in state.items()}
            there, total, is_open = there[is_open], total[is_open], is_open[is_open]
    return Decision(classes, sure, steps)


_steps: WeakKeyDictionary[Traceable, tuple[tuple[object, ...], StepNetwork]] = WeakKeyDictionary()
"""The latest step of each network, and what it was made for: tracing one takes longer than running it."""


def _step_of(network: Traceable, frames: Tensor) -> StepNetwork:
    """One time step of the network for frames of this size."""
    layers: nn.Module = network.model
    number = next(network.model.parameters(), frames)
    made_for = (
        frames.shape[2:], network.training, number.device, number.dtype, *map(id, layers.modules())
    )  # fmt: skip
    known = _steps.get(network)
    if known is None or known[0] != made_for:
        known = _steps[network] = made_for, StepNetwork(network, frames)
    return known[1]
