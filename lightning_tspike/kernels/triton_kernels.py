"""The neuron on GPUs, in Triton: all time steps of a tile of neurons in one program.

Memory is seen as [T, rows, columns] (:class:`lightning_tspike.kernels.layout.Layout`); a program has ``ROWS`` by
``COLUMNS`` neurons, whose membrane potentials over T steps stay in its registers. Half-precision currents are
integrated in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import Layout, Neuron, dense, dense_like

__all__ = ["backward", "forward"]

_NEURONS = 1024  # of one program, ...
_MEMBRANES = 8192  # ... or fewer where over all time steps there were more than this: 64 registers of each thread


def forward(x: Tensor, amplitude: Tensor, threshold: Tensor, decay: Tensor | float, neuron: Neuron) -> Tensor:
    """Spikes a * s, [T*B, ...]; arguments as in :func:`lightning_tspike.kernels.run`."""
    x = dense(x)
    out = neuron.empty_output(x)
    _, grid, numbers, options = _describe(x, amplitude, threshold, neuron)
    with torch.cuda.device_of(x):
        _forward[grid](x, out, amplitude, threshold, _as_tensor(decay, threshold), *numbers, **options)
    return out


def backward(
    x: Tensor,
    amplitude: Tensor,
    threshold: Tensor,
    decay: Tensor | float,
    neuron: Neuron,
    grad: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients towards x, amplitude, threshold and decay; None for those of the last three that ``needs`` denies."""
    x = dense(x)
    grad = dense_like(grad, x)
    grad_x = torch.empty_like(x)
    layout, grid, numbers, options = _describe(x, amplitude, threshold, neuron)
    strips = triton.cdiv(layout.columns, options["COLUMNS"])
    blocks = triton.cdiv(layout.rows, options["ROWS"])
    each = {None: (strips,), "row": (layout.rows, strips), "column": (blocks, layout.columns)}[layout.channels]
    sums = threshold.new_empty((3, *each))
    with torch.cuda.device_of(x):
        _backward[grid](
            x, amplitude, threshold, _as_tensor(decay, threshold), grad, grad_x, *sums, *numbers, **options,
            CHANNELS={None: 0, "row": 1, "column": 2}[layout.channels], SURROGATE=neuron.surrogate,
            DETACH=neuron.detach_reset, NEEDS_AMPLITUDE=needs[0], NEEDS_THRESHOLD=needs[1], NEEDS_DECAY=needs[2],
        )  # fmt: skip
    return grad_x, *layout.gradients(sums, amplitude, threshold, needs)


def _describe(
    x: Tensor, amplitude: Tensor, threshold: Tensor, neuron: Neuron
) -> tuple[Layout, tuple[int], tuple[int, ...], dict[str, Any]]:
    """Layout, number of programs, and what the kernels are called with."""
    layout = Layout.of(x, neuron.batch(x), amplitude, threshold)
    by = {None: 0, "row": 1, "column": 2}[layout.channels]
    neurons = max(128, min(_NEURONS, triton.next_power_of_2(_MEMBRANES // neuron.timesteps + 1) // 2))
    # a column is a channel, and channels are summed over rows: few columns, or there would be few rows to sum
    columns = min(triton.next_power_of_2(layout.columns), 64 if by == 2 else neurons)
    options: dict[str, Any] = {
        "TIMESTEPS": neuron.timesteps,
        "SOFT": neuron.reset == "soft",
        "TERNARY": neuron.is_ternary,
        "LEVELS": neuron.levels,
        "STATIC": neuron.static_input,
        "AMPLITUDE_BY": by if amplitude.ndim else 0,
        "THRESHOLD_BY": by if threshold.ndim else 0,
        "ROWS": neurons // columns if layout.rows > 1 else 1,
        "COLUMNS": columns,
        "num_warps": 4,
        # spikes must be those of the equations, bit for bit: nothing may be rounded less often
        "enable_fp_fusion": False,
    }
    programs = triton.cdiv(layout.rows, options["ROWS"]) * triton.cdiv(layout.columns, columns)
    return layout, (programs,), (layout.rows, layout.columns, layout.count), options


def _as_tensor(decay: Tensor | float, like: Tensor) -> Tensor:
    return decay if isinstance(decay, Tensor) else like.new_full((), decay)


@triton.jit
def _strips(columns, COLUMNS: tl.constexpr):
    """How many programs lie side by side: cdiv, whose sum would leave 32 bits for the largest of numbers."""
    return (columns - 1) // COLUMNS + 1


@triton.jit
def _tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of this program's neurons, which of them exist, where they lie, and how far a time step is."""
    strips = _strips(columns, COLUMNS)
    row = tl.program_id(0) // strips * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % strips * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    at = row.to(tl.int64) * columns + column
    step = tl.full((), 1, tl.int64) * rows * columns  # rows may be a plain 1 here
    return row, column, inside, at, step


@triton.jit
def _value(pointer, row, column, columns, channels, BY: tl.constexpr):
    """Amplitude or threshold of a tile: shape [], [ROWS, 1] or [1, COLUMNS]."""
    if BY == 0:
        return tl.load(pointer)
    elif BY == 1:
        return tl.load(pointer + row % channels)
    else:
        return tl.load(pointer + column, mask=column < columns, other=1)


@triton.jit
def _fired(u, theta, TERNARY: tl.constexpr, LEVELS: tl.constexpr):
    s = tl.where(u >= theta, 1.0, 0.0).to(u.dtype)
    if TERNARY:
        s -= tl.where(u <= -theta, 1.0, 0.0).to(u.dtype)
    for level in tl.static_range(1, LEVELS):
        step = (2 * level + 1) * theta
        s += tl.where(u >= step, 1.0, 0.0).to(u.dtype) - tl.where(u <= -step, 1.0, 0.0).to(u.dtype)
    return s


@triton.jit
def _taken(theta, LEVELS: tl.constexpr):
    """What a soft reset takes for each level of a spike."""
    if LEVELS == 1:
        return theta
    else:
        return 2 * theta


@triton.jit
def _after_reset(u, s, theta, SOFT: tl.constexpr, LEVELS: tl.constexpr):
    if SOFT:
        return u - _taken(theta, LEVELS) * s
    else:
        return u * (1 - tl.abs(s))  # a product, not a choice: an infinite u leaves NaN, as in the equations


@triton.jit
def _derivative(u, theta, SURROGATE: tl.constexpr, TERNARY: tl.constexpr, LEVELS: tl.constexpr):
    """ds/du, equations in surrogate.py."""
    if SURROGATE == "rectangular":
        if TERNARY:
            inside = tl.abs(u) < 2 * LEVELS * theta
        else:
            inside = tl.abs(u - theta) < theta
        return tl.where(inside, 1.0, 0.0).to(u.dtype) / (2 * theta)
    elif SURROGATE == "triangular":
        if TERNARY:
            v = tl.abs(u) / theta
        else:
            v = u / theta
        h = 1 - tl.abs(v - 1)
        total = tl.where(h < 0, 0.0, h)
        for level in tl.static_range(1, LEVELS):
            h = 1 - tl.abs(v - (2 * level + 1))
            total += tl.where(h < 0, 0.0, h)
        return total / theta
    else:
        total = tl.zeros_like(u)
        for level in tl.static_range(LEVELS):
            above = 3.141592653589793 * (u / theta - (2 * level + 1))
            total += 1 / (1 + above * above)
            if TERNARY:
                below = 3.141592653589793 * (u / theta + (2 * level + 1))
                total += 1 / (1 + below * below)
        return total / theta


@triton.jit
def _forward(
    x, out, amplitude, threshold, decay, rows, columns, channels,
    TIMESTEPS: tl.constexpr, SOFT: tl.constexpr, TERNARY: tl.constexpr, LEVELS: tl.constexpr, STATIC: tl.constexpr,
    AMPLITUDE_BY: tl.constexpr, THRESHOLD_BY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    row, column, inside, at, step = _tile(rows, columns, ROWS, COLUMNS)
    a = _value(amplitude, row, column, columns, channels, AMPLITUDE_BY)
    theta = _value(threshold, row, column, columns, channels, THRESHOLD_BY)
    tau = tl.load(decay)
    current = tl.load(x + at, mask=inside, other=0).to(theta.dtype)
    h = tl.zeros((ROWS, COLUMNS), theta.dtype)
    for t in tl.static_range(TIMESTEPS):
        if t > 0:
            if not STATIC:
                current = tl.load(x + at + t * step, mask=inside, other=0).to(theta.dtype)
        u = h + current
        s = _fired(u, theta, TERNARY, LEVELS)
        tl.store(out + at + t * step, (s * a).to(out.dtype.element_ty), mask=inside)
        h = tau * _after_reset(u, s, theta, SOFT, LEVELS)


@triton.jit
def _store_sum(sums, value, row, column, rows, columns, strips, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
               CHANNELS: tl.constexpr) -> None:  # fmt: skip
    """What a tile gives to a gradient: one number, one for each row, or one for each column."""
    if CHANNELS == 0:
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(value, 1), 0))
    elif CHANNELS == 1:
        r = tl.program_id(0) // strips * ROWS + tl.arange(0, ROWS)
        tl.store(sums + r.to(tl.int64) * strips + tl.program_id(0) % strips, tl.sum(value, 1), mask=r < rows)
    else:
        c = tl.program_id(0) % strips * COLUMNS + tl.arange(0, COLUMNS)
        block = (tl.program_id(0) // strips).to(tl.int64)
        tl.store(sums + block * columns + c, tl.sum(value, 0), mask=c < columns)


@triton.jit
def _backward(
    x, amplitude, threshold, decay, grad_out, grad_x, to_amplitude, to_threshold, to_decay, rows, columns, channels,
    TIMESTEPS: tl.constexpr, SOFT: tl.constexpr, TERNARY: tl.constexpr, LEVELS: tl.constexpr, STATIC: tl.constexpr,
    AMPLITUDE_BY: tl.constexpr, THRESHOLD_BY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, SURROGATE: tl.constexpr, DETACH: tl.constexpr, NEEDS_AMPLITUDE: tl.constexpr,
    NEEDS_THRESHOLD: tl.constexpr, NEEDS_DECAY: tl.constexpr,
) -> None:  # fmt: skip
    row, column, inside, at, step = _tile(rows, columns, ROWS, COLUMNS)
    strips = _strips(columns, COLUMNS)
    a = _value(amplitude, row, column, columns, channels, AMPLITUDE_BY)
    theta = _value(threshold, row, column, columns, channels, THRESHOLD_BY)
    tau = tl.load(decay)
    current = tl.load(x + at, mask=inside, other=0).to(theta.dtype)
    h = tl.zeros((ROWS, COLUMNS), theta.dtype)
    membranes = ()  # u of all time steps, in registers
    for t in tl.static_range(TIMESTEPS):
        if t > 0:
            if not STATIC:
                current = tl.load(x + at + t * step, mask=inside, other=0).to(theta.dtype)
        u = h + current
        membranes = membranes + (u,)
        h = tau * _after_reset(u, _fired(u, theta, TERNARY, LEVELS), theta, SOFT, LEVELS)
    zero = tl.zeros((ROWS, COLUMNS), theta.dtype)
    next_, total = zero, zero  # dL/du of the step after; of all steps
    sum_amplitude, sum_threshold, sum_decay = zero, zero, zero
    for i in tl.static_range(TIMESTEPS):
        u = membranes[TIMESTEPS - 1 - i]
        s = _fired(u, theta, TERNARY, LEVELS)
        grad = tl.load(grad_out + at + (TIMESTEPS - 1 - i) * step, mask=inside, other=0).to(theta.dtype)
        to_spike = a * grad
        if NEEDS_AMPLITUDE:
            sum_amplitude += grad * s
        if i > 0:
            if NEEDS_DECAY:
                sum_decay += tl.where(inside, next_ * _after_reset(u, s, theta, SOFT, LEVELS), 0)
            to_rest = tau * next_  # dL/dv
            if SOFT:
                direct = to_rest
                through = -_taken(theta, LEVELS) * to_rest
                if NEEDS_THRESHOLD:
                    sum_threshold -= _taken(to_rest, LEVELS) * s
            else:
                direct = to_rest * (1 - tl.abs(s))
                through = -u * s * to_rest
            if not DETACH:
                to_spike += through
        through_spike = to_spike * _derivative(u, theta, SURROGATE, TERNARY, LEVELS)
        if NEEDS_THRESHOLD:
            sum_threshold -= tl.where(inside, through_spike * u / theta, 0)
        next_ = through_spike
        if i > 0:
            next_ += direct
        if STATIC:
            total += next_
        else:
            tl.store(grad_x + at + (TIMESTEPS - 1 - i) * step, next_.to(grad_x.dtype.element_ty), mask=inside)
    if STATIC:
        tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=inside)
    if NEEDS_AMPLITUDE:
        _store_sum(to_amplitude, sum_amplitude, row, column, rows, columns, strips, ROWS, COLUMNS, CHANNELS)
    if NEEDS_THRESHOLD:
        _store_sum(to_threshold, sum_threshold, row, column, rows, columns, strips, ROWS, COLUMNS, CHANNELS)
    if NEEDS_DECAY:
        _store_sum(to_decay, sum_decay, row, column, rows, columns, strips, ROWS, COLUMNS, CHANNELS)
