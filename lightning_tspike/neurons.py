"""Spiking neurons as modules: thin layers over :mod:`lightning_tspike.functional`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from . import functional
from ._calls import call_of
from ._checks import check_levels, check_timesteps
from .surrogate import SURROGATES

__all__ = [
    "NEURONS",
    "NONE",
    "BinaryLIF",
    "ComplementedTernaryLIF",
    "NeuronOptions",
    "Quantized",
    "SpikingNeuron",
    "TernaryIF",
    "TernaryLIF",
    "check_neuron",
]

AmplitudeKind: TypeAlias = Literal["layer", "channel", "fixed"]


@dataclass(frozen=True, kw_only=True)
class NeuronOptions:
    """Options that all kinds of neurons share: declared, documented and checked here alone.

    Attributes:
        amplitude: ``"layer"`` learns one spike amplitude a for the layer, starting at 1, ``"channel"`` one for each
            channel; ``"fixed"`` emits plain spikes.
        decay: Membrane decay tau in [0, 1]; where it is learned, in (0, 1), and this is where it starts.
        threshold: Firing threshold theta > 0, in units of the membrane potential; where it is learned, it starts here.
        learn_decay: Learn tau, one for the layer, as the sigmoid of a parameter (Fang et al. 2021, arXiv 2007.05785).
        learn_threshold: Learn theta, one for the layer.
        couple_threshold: The threshold goes along with the learned amplitude: theta * a instead of theta. At
            theta = 1/2 and one time step, the spikes a * s are the input rounded to a learned step (LSQ; Esser et
            al. 2020, arXiv 1902.08153), and norms cancel no amplitude.
        reset: ``"hard"`` sets the membrane potential to 0 after a spike, ``"soft"`` subtracts the threshold.
        detach_reset: Cut the gradient that flows through the reset.
        surrogate: Surrogate gradient: ``"rectangular"``, ``"triangular"`` or ``"arctan"``.
        levels: Spikes are whole numbers from -levels to +levels, in steps of two thresholds; from 1 to 127. More than 1
            are for ``"ternary_lif"`` and ``"ternary_if"`` with ``reset="soft"`` and for ``"quantized"``.

    Raises:
        ValueError: An option is out of range or of another type; the message names it.
    """

    amplitude: AmplitudeKind = "layer"
    decay: float = functional.DECAY
    threshold: float = functional.THRESHOLD
    learn_decay: bool = False
    learn_threshold: bool = False
    couple_threshold: bool = False
    reset: functional.Reset = "hard"
    detach_reset: bool = False
    surrogate: functional.Surrogate = "rectangular"
    levels: int = 1

    def __post_init__(self) -> None:
        if self.amplitude not in ("layer", "channel", "fixed"):
            raise ValueError(
                "amplitude must be 'layer' or 'channel' (one is learned for each) or 'fixed' (always 1), got "
                f"{self.amplitude!r}"
            )
        if not _is_number(self.decay) or not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be a number in [0, 1], got {self.decay!r}")
        if self.learn_decay and self.decay in (0, 1):
            raise ValueError(
                f"a learned decay starts between 0 and 1, where its sigmoid can be; got decay={self.decay!r}"
            )
        if not _is_number(self.threshold) or not (self.threshold > 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be a positive number, got {self.threshold!r}")
        for name in ("learn_decay", "learn_threshold", "couple_threshold", "detach_reset"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.couple_threshold and (self.amplitude == "fixed" or self.learn_threshold):
            raise ValueError(
                "couple_threshold=True needs a learned amplitude and no threshold that is learned by itself, got "
                f"amplitude={self.amplitude!r}, learn_threshold={self.learn_threshold!r}"
            )
        if self.reset not in ("hard", "soft"):
            raise ValueError(f"reset must be 'hard' or 'soft', got {self.reset!r}")
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {sorted(SURROGATES)}, got {self.surrogate!r}")
        check_levels(self.levels, "soft", True)


class SpikingNeuron(nn.Module):
    """A layer of spiking neurons, run over all time steps at once; the base of all kinds.

    Equations and sources: :mod:`lightning_tspike.functional`. Maps [T*B, ...] to [T*B, ...] with time outermost. The
    membrane potential lives inside ``forward`` only: nothing has to be reset, nothing of it is in the ``state_dict``.

    Args:
        timesteps: Number of time steps T.
        channels: Number of channels C, dimension 1 of the input; needed by ``amplitude="channel"`` alone.
        options: As in :class:`NeuronOptions`.

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Attributes:
        raw_amplitude: The learned parameter, shape [1] or [C], or None; the amplitude is its absolute value, so that it
            never gets negative, whatever the optimizer does.
        raw_decay: The learned parameter, shape [1], or None; tau is its sigmoid.
        threshold: A parameter, shape [1], where it is learned, otherwise a buffer, shape []; [C] after folding. Its
            absolute value, times a learned amplitude with ``couple_threshold``, is theta, :attr:`firing_threshold`.
        is_encoder: Whether it ends the static prefix of a :class:`lightning_tspike.SpikingNetwork`: in a call
            with still images its input is [B, ...].

    No parameter is a scalar, because FSDP2 shards parameters along a dimension; scalars of older files are loaded.

    To observe membrane potentials, register an ordinary forward hook and call :meth:`membrane_potential` on the hook's
    input (under ``torch.no_grad`` where no gradient is wanted); without a hook they cost nothing.
    """

    is_ternary: ClassVar[bool]

    threshold: Tensor
    # of neurons in older files
    levels: int = 1
    couple_threshold: bool = False

    def __init__(self, timesteps: int, *, channels: int | None = None, **options: Any) -> None:
        super().__init__()
        check_timesteps(timesteps)
        chosen = NeuronOptions(**options)
        self._timesteps = timesteps
        self.reset = chosen.reset
        self.detach_reset = chosen.detach_reset
        self.surrogate = chosen.surrogate
        self.levels = chosen.levels
        self.couple_threshold = chosen.couple_threshold
        check_levels(self.levels, self.reset, self.is_ternary)
        self.is_encoder = False
        self._static_input = False
        self._decay = float(chosen.decay)
        self.raw_decay = nn.Parameter(torch.tensor([self._decay]).logit()) if chosen.learn_decay else None
        if chosen.learn_threshold:
            self.threshold = nn.Parameter(torch.tensor([float(chosen.threshold)]))
        else:
            self.register_buffer("threshold", torch.tensor(float(chosen.threshold)))
        self.raw_amplitude = None if chosen.amplitude == "fixed" else nn.Parameter(_ones(chosen.amplitude, channels))

    @property
    def timesteps(self) -> int:
        """Number of time steps T; within a call of a network that call's. Can be set."""
        call = call_of(self)
        return self._timesteps if call is None else call.timesteps

    @timesteps.setter
    def timesteps(self, timesteps: int) -> None:
        check_timesteps(timesteps)
        self._timesteps = timesteps

    @property
    def static_input(self) -> bool:
        """Whether the input is [B, ...], the same at every time step, so that the neuron repeats it T times.

        Within a call of a network that says so. Can be set for a neuron that is run by itself.
        """
        call = call_of(self)
        return self._static_input if call is None else call.is_static and self.is_encoder

    @static_input.setter
    def static_input(self, static_input: bool) -> None:
        self._static_input = static_input

    @property
    def amplitude(self) -> Tensor | float:
        """Spike amplitude a: a tensor of shape [] or [C] that carries a gradient where it is learned, else 1.0."""
        return 1.0 if self.raw_amplitude is None else _scalar(_positive(self.raw_amplitude))

    @property
    def decay(self) -> Tensor | float:
        """Membrane decay tau: a tensor of shape [] that carries a gradient where it is learned, else a number."""
        return self._decay if self.raw_decay is None else _scalar(self.raw_decay.sigmoid())

    @property
    def firing_threshold(self) -> Tensor:
        """Firing threshold theta > 0, shape [] or [C]; carries a gradient where it is learned, itself or coupled."""
        own = _scalar(_positive(self.threshold)) if isinstance(self.threshold, nn.Parameter) else self.threshold
        return own * self.amplitude if self.is_coupled else own

    @property
    def is_coupled(self) -> bool:
        """Whether the threshold goes along with an amplitude, which it no longer does where that is folded away."""
        return self.couple_threshold and self.raw_amplitude is not None

    @property
    def options(self) -> NeuronOptions:
        """What it would be made with again: what is learned starts where it is now, of channels at the first."""
        return NeuronOptions(
            amplitude=self.amplitude_kind,
            decay=float(torch.as_tensor(self.decay).detach()),
            threshold=float(_positive(self.threshold.detach()).flatten()[0]),
            learn_decay=self.raw_decay is not None,
            learn_threshold=isinstance(self.threshold, nn.Parameter),
            couple_threshold=self.is_coupled,
            reset=self.reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
            levels=self.levels,
        )

    @property
    def amplitude_kind(self) -> AmplitudeKind:
        """Whether an amplitude is learned for the ``"layer"``, for each ``"channel"``, or ``"fixed"``."""
        if self.raw_amplitude is None:
            return "fixed"
        return "layer" if self.raw_amplitude.numel() == 1 else "channel"

    def forward(self, x: Tensor) -> Tensor:
        """Input current [T*B, ...] ([B, ...] with ``static_input``) to spikes a * s [T*B, ...]."""
        raise NotImplementedError

    def step(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One time step, with what is left of the past handed in and out; see :func:`lightning_tspike.functional.step`.

        Args:
            memory: What the step before returned; zeros before the first one. [B, ...], in float32 or float64.
            x: Input current of this time step, [B, ...].

        Returns:
            Spikes a * s and the memory for the next step, both [B, ...]. The spikes of T steps are those of ``forward``
            bit for bit.

        Raises:
            ValueError: The shapes of ``memory`` and ``x`` differ.
        """
        raise NotImplementedError

    def membrane_potential(self, x: Tensor) -> Tensor:
        """Membrane potential [T*B, ...] before firing for the input that ``forward`` got, differentiable as that is."""
        return functional.membrane_potential(x, self.timesteps, is_ternary=self.is_ternary, **self._options())

    def _send(self, spikes: Tensor) -> Tensor:
        call = call_of(self)
        if call is not None and call.on_spikes is not None:
            call.on_spikes(self, spikes)
        if call is not None and call.probe is not None:
            call.probe(self, spikes)
        return spikes

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # what is learned for a layer is a scalar in older files
        for name, parameter in self._parameters.items():
            saved = state_dict.get(prefix + name)
            if parameter is not None and parameter.shape == (1,) and isinstance(saved, Tensor) and saved.ndim == 0:
                state_dict[prefix + name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _equations(self) -> dict[str, Any]:
        """What one time step follows; nothing of the call that the neuron runs in."""
        return {
            "decay": self.decay,
            "threshold": self.firing_threshold,
            "reset": self.reset,
            "detach_reset": self.detach_reset,
            "surrogate": self.surrogate,
        }

    def _options(self) -> dict[str, Any]:
        return {**self._equations(), "static_input": self.static_input}

    def extra_repr(self) -> str:
        decay = "learned" if self.raw_decay is not None else self._decay
        threshold = "learned" if isinstance(self.threshold, nn.Parameter) else self.threshold.tolist()
        threshold = f"{threshold} * amplitude" if self.is_coupled else threshold
        levels = "" if self.levels == 1 else f", levels={self.levels}"
        return (
            f"timesteps={self._timesteps}, amplitude={self.amplitude_kind}, decay={decay}, threshold={threshold}, "
            f"reset={self.reset}, detach_reset={self.detach_reset}, surrogate={self.surrogate}{levels}"
        )


class TernaryLIF(SpikingNeuron):
    """Ternary leaky integrate-and-fire neurons: s in {-1, 0, +1}, or -levels to +levels; see :class:`SpikingNeuron`."""

    is_ternary = True

    def forward(self, x: Tensor) -> Tensor:
        """Input current [T*B, ...] ([B, ...] with ``static_input``) to spikes a * s [T*B, ...]."""
        return self._send(functional.ternary_lif(x, self.timesteps, self.amplitude, **self._options()))

    def step(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One time step, see :meth:`SpikingNeuron.step`: memory and current to spikes and memory, all [B, ...]."""
        return functional.step(x, memory, self.amplitude, is_ternary=True, **self._equations())

    def _equations(self) -> dict[str, Any]:
        return {**super()._equations(), "levels": self.levels}


class TernaryIF(TernaryLIF):
    """Ternary integrate-and-fire neurons: nothing leaks, tau = 1; see :class:`SpikingNeuron`.

    Raises:
        ValueError: An argument is outside its range, or ``decay`` or ``learn_decay`` is given another value.
    """

    def __init__(self, timesteps: int, *, channels: int | None = None, **options: Any) -> None:
        # the default decay comes along where a network is built from a configuration
        if options.get("decay", 1.0) not in (1.0, functional.DECAY) or options.get("learn_decay"):
            raise ValueError("an integrate-and-fire neuron does not leak: leave decay and learn_decay as they are")
        options["decay"] = 1.0
        super().__init__(timesteps, channels=channels, **options)


class Quantized(TernaryLIF):
    """A quantised activation: the spikes of ternary neurons without a memory, each time step for itself.

    s = clip(round(x / 2 theta), -levels, levels). A network of these is the quantised ANN that a spiking network with
    as many levels is compared with, usually at T = 1, where it is the same network. Options that are about what is left
    of the past have no meaning: ``reset`` and ``detach_reset`` change nothing.

    Raises:
        ValueError: An argument is outside its range, or ``decay`` or ``learn_decay`` is given another value.
    """

    def __init__(self, timesteps: int, *, channels: int | None = None, **options: Any) -> None:
        if options.get("decay", 0.0) not in (0.0, functional.DECAY) or options.get("learn_decay"):
            raise ValueError("a quantised activation has no memory: leave decay and learn_decay as they are")
        options["decay"] = 0.0
        if options.get("reset", "hard") == "hard":  # the default; several levels need the other one
            options["reset"] = "soft"
        super().__init__(timesteps, channels=channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Input [T*B, ...] ([B, ...] with ``static_input``) to spikes a * s [T*B, ...]."""
        spikes = functional.ternary_lif(x, 1, self.amplitude, **self._equations())
        return self._send(torch.cat([spikes] * self.timesteps) if self.static_input else spikes)

    def step(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One time step, see :meth:`SpikingNeuron.step`: the memory is and stays zero."""
        zero = torch.zeros_like(memory)
        return functional.step(x, zero, self.amplitude, is_ternary=True, **self._equations())[0], zero

    def membrane_potential(self, x: Tensor) -> Tensor:
        """What is rounded, [T*B, ...]: the input."""
        u = functional.membrane_potential(x, 1, **self._equations())
        return torch.cat([u] * self.timesteps) if self.static_input else u


class BinaryLIF(SpikingNeuron):
    """Binary leaky integrate-and-fire neurons, s in {0, 1}: the baseline; see :class:`SpikingNeuron`.

    Fires where u >= theta (the published code of the ternary spike has u > theta in its binary mode).
    """

    is_ternary = False

    def forward(self, x: Tensor) -> Tensor:
        """Input current [T*B, ...] ([B, ...] with ``static_input``) to spikes a * s [T*B, ...]."""
        return self._send(functional.binary_lif(x, self.timesteps, self.amplitude, **self._options()))

    def step(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One time step, see :meth:`SpikingNeuron.step`: memory and current to spikes and memory, all [B, ...]."""
        return functional.step(x, memory, self.amplitude, is_ternary=False, **self._equations())


class ComplementedTernaryLIF(TernaryLIF):
    """Complemented ternary neurons, CTSN (arXiv 2601.15598): ternary LIF with a learned memory.

    Args:
        timesteps: As in :class:`SpikingNeuron`.
        variant: Equation of the memory: ``"static"`` for still images, ``"events"`` for event streams.
        channels: As in :class:`SpikingNeuron`.
        options: As in :class:`SpikingNeuron`.

    Attributes:
        raw_memory: Parameter, shape [3], starting at 0; its sigmoid is alpha, beta and gamma.
    """

    def __init__(
        self,
        timesteps: int,
        *,
        variant: Literal["static", "events"] = "static",
        channels: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(timesteps, channels=channels, **options)
        check_levels(self.levels, self.reset, False)
        if variant not in ("static", "events"):
            raise ValueError(f"variant must be 'static' or 'events', got {variant!r}")
        self.variant = variant
        self.raw_memory = nn.Parameter(torch.zeros(3))

    def _equations(self) -> dict[str, Any]:
        alpha, beta, gamma = self.raw_memory.sigmoid().unbind()
        return {**super()._equations(), "complement": functional.Complement(alpha, beta, gamma, self.variant)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, variant={self.variant}"


NEURONS: dict[str, Callable[..., SpikingNeuron]] = {
    "ternary_lif": TernaryLIF,
    "ternary_if": TernaryIF,
    "binary_lif": BinaryLIF,
    "ctsn": ComplementedTernaryLIF,
    "ctsn_events": partial(ComplementedTernaryLIF, variant="events"),
    "quantized": Quantized,
}
"""Neurons by the names that configurations use; each is called with T, ``channels`` and :class:`NeuronOptions`."""

NONE = "none"
"""In the place of such a name: no activation is replaced, so that the network is the ANN that it would come from."""


def check_neuron(name: str) -> None:
    """Raise ValueError unless there is such a neuron, or it is :data:`NONE`."""
    if name not in NEURONS and name != NONE:
        raise ValueError(f"neuron must be one of {sorted(NEURONS)}, or {NONE!r} for the ANN itself; got {name!r}")


def _ones(amplitude: str, channels: int | None) -> Tensor:
    if amplitude == "layer":
        return torch.ones(1)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"amplitude='channel' needs channels=C, a whole number of at least 1, got {channels!r}")
    return torch.ones(channels)


def _positive(raw: Tensor) -> Tensor:
    # abs(), but with a gradient at 0, where an optimizer could otherwise never leave
    return torch.where(raw < 0, -raw, raw)


def _scalar(value: Tensor) -> Tensor:
    # a kernel takes [] or [C]; of one channel it is the same
    return value.reshape(()) if value.numel() == 1 else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
