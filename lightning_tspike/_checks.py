"""Checks of what neurons are given: time steps, levels, and numbers in their range."""

from __future__ import annotations

import numbers
from typing import TypeAlias

import torch
from torch import Tensor

from ._plain import is_plain

__all__ = ["check_input", "check_levels", "check_numbers", "check_range", "check_timesteps"]

Number: TypeAlias = Tensor | float

MOST_LEVELS = 127  # -127..127 fit into a byte


def check_timesteps(timesteps: object) -> None:
    """Check a number of time steps.

    Raises:
        ValueError: It is no whole number of at least 1.
    """
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ValueError(f"timesteps must be a whole number of at least 1, got {timesteps!r}")


def check_levels(levels: object, reset: str, can_have_several: bool) -> None:
    """Check how many levels the spikes of neurons have.

    Args:
        levels: How many.
        reset: How the neurons reset.
        can_have_several: Whether they are ternary integrate-and-fire neurons.

    Raises:
        ValueError: They are no whole number from 1 to 127, or there are several where they have no meaning.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels must be a whole number from 1 to {MOST_LEVELS}, got {levels!r}")
    if levels == 1:
        return
    if not can_have_several:
        raise ValueError(
            f"levels={levels} is for neuron='ternary_lif', 'ternary_if' and 'quantized'; binary and complemented "
            "neurons have one level: leave levels out"
        )
    if reset != "soft":
        raise ValueError(
            f"levels={levels} needs reset='soft', which takes from the membrane potential what was sent; got "
            f"reset={reset!r}, which would throw away the rest as well"
        )


def check_input(x: Tensor, timesteps: int, reset: str) -> None:
    """Raise ValueError where an input [T*B, ...] cannot be one of T time steps, or there is no such reset."""
    check_timesteps(timesteps)
    if x.ndim == 0 or x.shape[0] % timesteps:
        raise ValueError(
            f"x must have shape [T*B, ...] with T = {timesteps} outermost, got {tuple(x.shape)}: "
            f"its first dimension is no multiple of {timesteps}"
        )
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset must be 'hard' or 'soft', got {reset!r}")


def check_numbers(decay: Number, threshold: Number, dtype: torch.dtype) -> None:
    """Raise ValueError where decay or threshold is out of range, for membrane potentials of some dtype."""
    if isinstance(decay, Tensor) and decay.numel() != 1:
        raise ValueError(f"decay must be one number, got a tensor of shape {tuple(decay.shape)}")
    check_range("decay", decay, 0.0, 1.0)
    # of anything smaller the surrogate's height, 1 / theta, would be infinite
    check_range("threshold", threshold, torch.finfo(dtype).tiny, torch.finfo(dtype).max)


def check_range(name: str, value: Number, least: float, most: float) -> None:
    """Raise where a number is not in [least, most], or is NaN; of a tensor, where that costs nothing to know."""
    low = high = value
    if isinstance(value, Tensor):
        # a GPU would be waited for, and a graph cut in two
        if torch.compiler.is_compiling() or not value.is_cpu or value.numel() == 0 or not is_plain(value):
            return
        if value.ndim == 0:
            low = high = value.item()
        else:
            low, high = (v.item() for v in value.detach().aminmax())
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number or a tensor, got {value!r}")
    if not (least <= low and high <= most):
        wrong = high if least <= low else low
        raise ValueError(f"{name} must be between {least:.3g} and {most:.3g}, got {wrong!r}")
