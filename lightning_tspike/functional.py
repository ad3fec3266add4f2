"""Spiking neurons as pure functions of tensors: one core, :func:`integrate_and_fire`, and what is made of it.

The ternary neuron is that of Guo et al., "Ternary Spike: Learning Ternary Spikes for Spiking Neural Networks", AAAI
2024, arXiv 2312.06372. For an input current x_t (t = 1..T), membrane potential u, decay tau, threshold theta and
amplitude a > 0::

    u_t = tau * v_{t-1} + x_t,   v_0 = 0                 leak, integrate
    s_t = sign(u_t) if |u_t| >= theta else 0             fire: s_t in {-1, 0, +1}
    v_t = u_t * (1 - |s_t|)                              hard reset (default), or
    v_t = u_t - theta * s_t                              soft reset: a spike takes one threshold with it
    o_t = a * s_t                                        what the next layer sees

The binary neuron fires s_t = 1 if u_t >= theta else 0. With tau = 1 both are integrate-and-fire neurons (IF). The
amplitude takes no part in the reset. The backward pass takes a surrogate for ds/du (:mod:`lightning_tspike.surrogate`);
gradients flow through the reset too, with d|s|/ds = sign(s), unless it is detached. Default threshold, decay and
surrogate are those of the authors' published code.

With ``levels=D`` above 1 (and a soft reset) a ternary neuron sends whole numbers from -D to +D, in steps of 2 theta::

    s_t = clip(round(u_t / 2 theta), -D, D)              halves away from zero
    v_t = u_t - 2 theta * s_t                            a spike takes with it what it has sent

This is I-LIF (SpikeYOLO, ECCV 2024; Spike-driven Transformer V3), which sends 0..D, with a sign. At D = 1 the formula
for s gives the ternary spike; only the soft reset differs: there it takes one threshold, as it always has here, half of
what rounding to steps of 2 theta has sent. Without a next time step both are the same.

The complemented ternary neuron (CTSN, arXiv 2601.15598) replaces tau * v_{t-1} by a memory h_t, h_1 = 0, with three
learned numbers, here after their sigmoid, alpha, beta and gamma in (0, 1)::

    u_t = h_t + x_t
    h_{t+1} = alpha * relu(h_t) - beta * relu(-h_t) + gamma * tau * v_t                  for still images
    h_{t+1} = alpha * h_t + beta * relu(tau * v_t) - gamma * relu(-tau * v_t)            for events
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import kernels
from ._checks import check_input, check_levels, check_numbers, check_range, check_timesteps
from ._plain import is_plain
from .kernels import Neuron, per_channel
from .surrogate import Fire, fired, firing

__all__ = ["Complement", "binary_lif", "integrate_and_fire", "membrane_potential", "step", "ternary_lif"]

DECAY = 0.25
THRESHOLD = 0.5

Reset: TypeAlias = Literal["hard", "soft"]
Surrogate: TypeAlias = Literal["rectangular", "triangular", "arctan"]
Number: TypeAlias = Tensor | float


class Complement(NamedTuple):
    """The memory of a complemented neuron (equations at the top of this file); numbers in (0, 1), or shape []."""

    alpha: Number
    beta: Number
    gamma: Number
    variant: Literal["static", "events"]


def ternary_lif(
    x: Tensor,
    timesteps: int,
    amplitude: Number = 1.0,
    *,
    decay: Number = DECAY,
    threshold: Number = THRESHOLD,
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = "rectangular",
    levels: int = 1,
    complement: Complement | None = None,
    static_input: bool = False,
) -> Tensor:
    """Run a layer of ternary LIF neurons over all time steps (equations at the top of this file).

    Args:
        x: Input current, shape [T*B, ...] with time outermost; channels, where there are any, are dimension 1. Whole
            numbers and truth values are taken as numbers of torch's default dtype.
        timesteps: Number of time steps T.
        amplitude: Spike amplitude a > 0: one number, or a tensor of shape [], [1] or [C]. Like ``decay``, ``threshold``
            and the numbers of ``complement`` it may require a gradient.
        decay: Factor tau in [0, 1] by which the membrane potential shrinks in one time step: a number, or shape [] or
            [1].
        threshold: Firing threshold theta > 0, in units of the membrane potential: one number, or shape [], [1] or [C].
        reset: ``"hard"`` sets the membrane potential to 0 after a spike, ``"soft"`` subtracts the threshold.
        detach_reset: Cut the gradient that flows through the reset.
        surrogate: ``"rectangular"``, ``"triangular"`` or ``"arctan"``.
        levels: D, from 1 to 127: spikes are from -D to +D. More than one need ``reset="soft"`` and no complement.
        complement: For the complemented neuron; None for the ordinary one.
        static_input: ``x`` has shape [B, ...] and is the input at every time step.

    Returns:
        Spikes a * s, shape [T*B, ...], in the dtype of ``x``.

    Raises:
        ValueError: ``timesteps`` is not a positive whole number or does not divide the first dimension of ``x``, ``x``
            holds complex numbers, a name is unknown, amplitude, decay, threshold or ``levels`` is out of range, or
            ``levels`` has no meaning for the neuron. Of tensors on GPUs the range is not looked at: every call would
            wait for the GPU.

    Half-precision inputs are integrated in float32. A NaN membrane potential never reaches a threshold, so it gives
    no spike; an infinite one fires, and as v_t is then inf * 0 or inf - theta, a hard reset leaves NaN: silence.

    Runs as one fused kernel where there is one for the device (:mod:`lightning_tspike.kernels`), with the same spikes
    bit for bit; only ``x`` is kept for the backward pass then, and gradients can be taken once, not of gradients.
    Within transforms of ``torch.func`` and with forward-mode gradients it runs as plain operations.

    Example:
        >>> x = torch.tensor([[0.6], [0.2], [-0.7]])  # one neuron, three time steps
        >>> ternary_lif(x, timesteps=3, amplitude=2.0).flatten().tolist()
        [2.0, 0.0, -2.0]
    """
    neuron = Neuron(timesteps, reset, detach_reset, surrogate, True, static_input, levels)
    return _spikes(x, amplitude, decay, threshold, neuron, complement)


def binary_lif(
    x: Tensor,
    timesteps: int,
    amplitude: Number = 1.0,
    *,
    decay: Number = DECAY,
    threshold: Number = THRESHOLD,
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = "rectangular",
    static_input: bool = False,
) -> Tensor:
    """Run a layer of binary LIF neurons, s in {0, 1}; all else as in :func:`ternary_lif`."""
    neuron = Neuron(timesteps, reset, detach_reset, surrogate, is_ternary=False, static_input=static_input)
    return _spikes(x, amplitude, decay, threshold, neuron, None)


def membrane_potential(
    x: Tensor,
    timesteps: int,
    *,
    decay: Number = DECAY,
    threshold: Number = THRESHOLD,
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = "rectangular",
    levels: int = 1,
    complement: Complement | None = None,
    static_input: bool = False,
    is_ternary: bool = True,
) -> Tensor:
    """Membrane potential u_t of every neuron just before it fires.

    Args:
        x: Input current, shape [T*B, ...], or [B, ...] with ``static_input``.
        timesteps: Number of time steps T.
        decay: As in :func:`ternary_lif`.
        threshold: As in :func:`ternary_lif`.
        reset: As in :func:`ternary_lif`.
        detach_reset: As in :func:`ternary_lif`.
        surrogate: As in :func:`ternary_lif`; it matters to the gradient alone.
        levels: As in :func:`ternary_lif`.
        complement: As in :func:`ternary_lif`.
        static_input: As in :func:`ternary_lif`.
        is_ternary: False for binary neurons.

    Returns:
        u, shape [T*B, ...]; float32 for half-precision inputs, the dtype of ``x`` otherwise.

    Raises:
        ValueError: As for :func:`ternary_lif`.
    """
    fire = firing(surrogate, is_ternary, levels)
    check_levels(levels, reset, is_ternary and complement is None)
    x = _over_time(x, timesteps) if static_input else x
    return integrate_and_fire(
        x,
        timesteps,
        fire,
        decay=decay,
        threshold=threshold,
        reset=reset,
        detach_reset=detach_reset,
        levels=levels,
        complement=complement,
    )[0]


def integrate_and_fire(
    x: Tensor,
    timesteps: int,
    fire: Fire,
    *,
    decay: Number,
    threshold: Number,
    reset: Reset,
    detach_reset: bool = False,
    levels: int = 1,
    complement: Complement | None = None,
) -> tuple[Tensor, Tensor]:
    """The core of all neurons: integrate, fire and reset over T time steps.

    Args:
        x: Input current, shape [T*B, ...].
        timesteps: Number of time steps T.
        fire: Maps membrane potentials u [B, ...] and the threshold to spikes [B, ...]; what it is differentiable by,
            the result is.
        decay: As in :func:`ternary_lif`.
        threshold: As in :func:`ternary_lif`.
        reset: As in :func:`ternary_lif`.
        detach_reset: As in :func:`ternary_lif`.
        levels: D of what ``fire`` gives; it matters to the soft reset.
        complement: As in :func:`ternary_lif`.

    Returns:
        Membrane potentials before firing and spikes, both [T*B, ...] in at least single precision.

    Raises:
        ValueError: As for :func:`ternary_lif`.
    """
    x = _as_floats(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    check_input(x, timesteps, reset)
    check_numbers(decay, threshold, dtype)
    theta = per_channel(_as_tensor(threshold, x, dtype), x)
    decay = _as_tensor(decay, x, dtype) if isinstance(decay, Tensor) else decay
    currents = x.to(dtype).unflatten(0, (timesteps, x.shape[0] // timesteps)).unbind(0)  # T times [B, ...]
    membranes: list[Tensor] = []
    spikes: list[Tensor] = []
    h: Tensor | None = None  # what is left of the past
    for t, current in enumerate(currents):
        u = current if h is None else h + current
        s = fire(u, theta)
        membranes.append(u)
        spikes.append(s)
        if t + 1 < timesteps:
            h = _left_of(u, s, theta, h, decay, reset, detach_reset, levels, complement)
    return torch.cat(membranes), torch.cat(spikes)


def step(
    x: Tensor,
    memory: Tensor,
    amplitude: Number = 1.0,
    *,
    decay: Number = DECAY,
    threshold: Number = THRESHOLD,
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = "rectangular",
    levels: int = 1,
    complement: Complement | None = None,
    is_ternary: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run a layer of neurons for one time step, with what is left of the past handed in and out.

    Step after step from a memory of zeros, the spikes are those of :func:`ternary_lif` or :func:`binary_lif` for all
    time steps at once, bit for bit.

    Args:
        x: Input current of this time step, shape [B, ...].
        memory: h_t, what is left of the past: tau * v_{t-1}, of a complemented neuron the equations at the top of this
            file; zeros before the first step. Shape [B, ...], in float32, or float64 where ``x`` is.
        amplitude: As in :func:`ternary_lif`.
        decay: As in :func:`ternary_lif`.
        threshold: As in :func:`ternary_lif`.
        reset: As in :func:`ternary_lif`.
        detach_reset: As in :func:`ternary_lif`.
        surrogate: As in :func:`ternary_lif`.
        levels: As in :func:`ternary_lif`.
        complement: As in :func:`ternary_lif`.
        is_ternary: False for binary neurons.

    Returns:
        Spikes a * s in the dtype of ``x`` and the memory h_{t+1}, both [B, ...].

    Raises:
        ValueError: The shapes of ``x`` and ``memory`` differ, or as for :func:`ternary_lif`.

    Example:
        >>> x = torch.tensor([[0.6], [0.2], [-0.7]])  # one neuron, three time steps
        >>> memory = torch.zeros(1)
        >>> for current in x:
        ...     spikes, memory = step(current, memory, amplitude=2.0)
        ...     print(spikes.item())
        2.0
        0.0
        -2.0
    """
    fire = firing(surrogate, is_ternary, levels)
    check_levels(levels, reset, is_ternary and complement is None)
    x = _as_floats(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    check_input(x, 1, reset)
    check_numbers(decay, threshold, dtype)
    if not isinstance(amplitude, Tensor):
        check_range("amplitude", amplitude, 0.0, torch.finfo(dtype).max)
    if memory.shape != x.shape:
        raise ValueError(f"the memory has shape {tuple(memory.shape)}, but the input current {tuple(x.shape)}")
    amplitude, theta = _as_tensor(amplitude, x, dtype), _as_tensor(threshold, x, dtype)
    decay = _as_tensor(decay, x, dtype) if isinstance(decay, Tensor) else decay
    if not (torch.compiler.is_compiling() or torch.is_grad_enabled()) and is_plain(x):
        neuron = Neuron(1, reset, detach_reset, surrogate, is_ternary, False, levels)
        if complement is None and (fused := kernels.step(x, memory, amplitude, theta, decay, neuron)) is not None:
            return fused
        # of a small layer, autograd's way there takes most of the time
        fire = partial(fired, is_ternary=is_ternary, levels=levels)
    theta = per_channel(theta, x)
    u = x.to(dtype) + memory  # in this order, for the result to lie in memory as x does
    s = fire(u, theta)
    memory = _left_of(u, s, theta, memory, decay, reset, detach_reset, levels, complement)
    return (s * per_channel(amplitude, x)).to(x.dtype), memory


def _left_of(
    u: Tensor,
    s: Tensor,
    theta: Tensor,
    h: Tensor | None,
    decay: Number,
    reset: Reset,
    detach_reset: bool,
    levels: int,
    complement: Complement | None,
) -> Tensor:
    """h_{t+1}, from u_t, s_t and h_t (None: 0)."""
    s = s.detach() if detach_reset else s
    v = u * (1 - s.abs()) if reset == "hard" else u - (theta if levels == 1 else 2 * theta) * s
    return decay * v if complement is None else _remember(complement, h, decay * v)


def _remember(complement: Complement, h: Tensor | None, leaked: Tensor) -> Tensor:
    """h_{t+1} of the complemented neuron, from h_t (None: 0) and tau * v_t."""
    alpha, beta, gamma, variant = complement
    if variant == "static":
        new = gamma * leaked
        return new if h is None else new + torch.where(h >= 0, alpha * h, beta * h)
    new = torch.where(leaked >= 0, beta * leaked, gamma * leaked)
    return new if h is None else new + alpha * h


def _spikes(
    x: Tensor, amplitude: Number, decay: Number, threshold: Number, neuron: Neuron, complement: Complement | None
) -> Tensor:
    """Spikes a * s [T*B, ...], by a kernel or by the equations."""
    fire = firing(neuron.surrogate, neuron.is_ternary, neuron.levels)
    check_levels(neuron.levels, neuron.reset, neuron.is_ternary and complement is None)
    x = _as_floats(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(amplitude, Tensor):  # what training makes of one is for training to see, in its loss
        check_range("amplitude", amplitude, 0.0, torch.finfo(dtype).max)
    amplitude = _as_tensor(amplitude, x, dtype)
    way = kernels.choose(x, neuron) if complement is None else "reference"
    if way != "reference":
        check_input(x, 1 if neuron.static_input else neuron.timesteps, neuron.reset)
        check_timesteps(neuron.timesteps)
        check_numbers(decay, threshold, dtype)
        decay = _as_tensor(decay, x, dtype) if isinstance(decay, Tensor) else decay
        return kernels.run(way, x, amplitude, _as_tensor(threshold, x, dtype), decay, neuron)
    _, spikes = integrate_and_fire(
        _over_time(x, neuron.timesteps) if neuron.static_input else x, neuron.timesteps, fire,
        decay=decay, threshold=threshold, reset=neuron.reset, detach_reset=neuron.detach_reset, levels=neuron.levels,
        complement=complement,
    )  # fmt: skip
    # in the dtype of x only at the end: the amplitude's gradient is summed over spikes in single precision
    return (spikes * per_channel(amplitude, x)).to(x.dtype)


def _as_tensor(value: Number, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Shape [] or [C], in ``dtype``, where ``x`` is."""
    if not isinstance(value, Tensor):
        return x.new_full((), value, dtype=dtype)  # unlike torch.tensor, without a copy that a GPU would wait for
    value = value.to(device=x.device, dtype=dtype).contiguous()  # kernels read it by its address
    if value.ndim == 1 and len(value) == 1:
        return value[0]
    per_channel(value, x)  # raises where the channels differ
    return value


def _as_floats(x: Tensor) -> Tensor:
    """``x``, or the same numbers in torch's default dtype where it has a dtype of whole numbers or truth values."""
    if x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return x
    if x.is_complex() or x.is_floating_point():
        raise ValueError(f"x must hold real numbers of 16, 32 or 64 bits, got {x.dtype}; convert it by x.to(...)")
    return x.to(torch.get_default_dtype())


def _over_time(x: Tensor, timesteps: int) -> Tensor:
    check_timesteps(timesteps)
    return x.repeat(timesteps, *[1] * (x.ndim - 1))
