"""Ternary spiking neurons as modules: thin layers over :mod:`lightning_tspike.functional`."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import functional

__all__ = ["TernaryLIF"]


class TernaryLIF(nn.Module):
    """A layer of ternary leaky integrate-and-fire neurons, run over all time steps at once.

    Equations and sources: :mod:`lightning_tspike.functional`. Maps [T*B, ...] to [T*B, ...] with time outermost. The
    membrane potential lives inside ``forward`` only: nothing has to be reset, nothing of it is in the ``state_dict``.

    Args:
        timesteps: Number of time steps T.
        amplitude: ``"layer"`` learns one spike amplitude a for the layer, starting at 1; ``"fixed"`` sends plain -1, 0
            and +1.
        decay: Membrane decay tau in [0, 1].
        threshold: Firing threshold theta > 0, in units of the membrane potential. A buffer, which folding rescales.
        detach_reset: Cut the gradient that flows through the reset.

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Attributes:
        raw_amplitude: The learned parameter, shape [], or None; the amplitude is its absolute value, so that it never
            gets negative, whatever the optimizer does. (A sign would say nothing new: the neuron is odd in its input.)
        threshold: Buffer, shape [].
        static_input: True where the input is [B, ...], the same at every time step (set by :class:`SpikingNetwork` on
            the first neurons behind a still image); the neuron then repeats it T times.

    To look at membrane potentials, register an ordinary forward hook and call :meth:`membrane_potential` on the hook's
    input; without a hook they cost nothing.
    """

    threshold: Tensor

    def __init__(
        self,
        timesteps: int,
        *,
        amplitude: Literal["layer", "fixed"] = "layer",
        decay: float = functional.DECAY,
        threshold: float = functional.THRESHOLD,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        check_options(timesteps, amplitude, decay, threshold)
        self.timesteps = timesteps
        self.decay = decay
        self.detach_reset = detach_reset
        self.static_input = False
        self.register_buffer("threshold", torch.tensor(float(threshold)))
        self.raw_amplitude = nn.Parameter(torch.tensor(1.0)) if amplitude == "layer" else None

    @property
    def amplitude(self) -> Tensor | float:
        """Spike amplitude a: a tensor of shape [] that carries a gradient where it is learned, else 1.0."""
        if self.raw_amplitude is None:
            return 1.0
        # abs(), but with a gradient at 0, where an optimizer could otherwise never leave
        return torch.where(self.raw_amplitude < 0, -self.raw_amplitude, self.raw_amplitude)

    def forward(self, x: Tensor) -> Tensor:
        """Input current [T*B, ...] ([B, ...] with ``static_input``) to spikes a * s [T*B, ...]."""
        return functional.ternary_lif(
            self._over_time(x),
            self.timesteps,
            self.amplitude,
            decay=self.decay,
            threshold=self.threshold,
            detach_reset=self.detach_reset,
        )

    def membrane_potential(self, x: Tensor) -> Tensor:
        """Membrane potential [T*B, ...] before firing for the input that ``forward`` got; no gradient."""
        return functional.membrane_potential(
            self._over_time(x), self.timesteps, decay=self.decay, threshold=self.threshold
        )

    def _over_time(self, x: Tensor) -> Tensor:
        return x.repeat(self.timesteps, *[1] * (x.ndim - 1)) if self.static_input else x

    def extra_repr(self) -> str:
        kind = "fixed" if self.raw_amplitude is None else "layer"
        return f"timesteps={self.timesteps}, amplitude={kind}, decay={self.decay}, threshold={self.threshold.tolist()}"


def check_options(timesteps: Any, amplitude: Any, decay: Any, threshold: Any) -> None:
    """Check the options of a neuron, whoever holds them.

    Raises:
        ValueError: One of them is out of range or of another type; the message names it.
    """
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ValueError(f"timesteps must be a whole number of at least 1, got {timesteps!r}")
    if amplitude not in ("layer", "fixed"):
        raise ValueError(f"amplitude must be 'layer' (learned) or 'fixed' (always 1), got {amplitude!r}")
    if not _is_number(decay) or not 0 <= decay <= 1:
        raise ValueError(f"decay must be a number in [0, 1], got {decay!r}")
    if not _is_number(threshold) or not (threshold > 0 and math.isfinite(threshold)):
        raise ValueError(f"threshold must be a positive number, got {threshold!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
