"""Feature maps of spiking networks, for detection, segmentation and whatever else reads more than logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._batches import LOGITS

__all__ = ["are_maps", "over_time"]


def are_maps(output: Any) -> bool:
    """Whether a model gives a list, tuple or dict of feature maps, in which there are no logits [N, K]."""
    if isinstance(output, dict) and not LOGITS & output.keys():
        parts = list(output.values())
    else:
        parts = list(output) if type(output) in (list, tuple) else []
    return bool(parts) and all(isinstance(part, Tensor) and part.ndim > 2 for part in parts)


def over_time(output: Any, timesteps: int, batch: int, *, per_step: bool = False, has_static: bool = False) -> Any:
    """What a network gives for a batch, from what its model gives for all time steps in one batch.

    Args:
        output: A tensor [T*B, ...], or lists, tuples and dicts of such tensors.
        timesteps: Number of time steps T.
        batch: Number of images B.
        per_step: Keep the time steps apart.
        has_static: A tensor [B, ...] may come from layers before the first neuron, which see a still image once: it is
            the same at every time step.

    Returns:
        The mean over time [B, ...], or [T, B, ...] with ``per_step``, in the same lists, tuples and dicts. What is no
        tensor stays as it is.

    Raises:
        ValueError: A tensor has another number of rows.
    """

    def timed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: timed(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [timed(value) for value in part] if isinstance(part, list) else tuple(timed(v) for v in part)
        if not isinstance(part, Tensor):
            return part
        rows = part.shape[0] if part.ndim else 0
        if rows == timesteps * batch:
            steps = part.unflatten(0, (timesteps, batch))
            return steps if per_step else steps.mean(0)
        if has_static and rows == batch:
            return part.expand(timesteps, *part.shape) if per_step else part
        raise ValueError(
            f"the model gives a tensor of shape {tuple(part.shape)} for {timesteps} time steps of {batch} images; "
            f"expected one row for each, {timesteps * batch} in all"
        )

    return timed(output)
