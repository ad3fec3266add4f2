"""Neurons and pools on bytes do what those on numbers do, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_tspike.functional import binary_lif, ternary_lif
from lightning_tspike.kernels import integer as kernels
from lightning_tspike.kernels.integer import Current, repeated

pytestmark = pytest.mark.skipif(not kernels.is_available(), reason="needs a C++ compiler")


def _maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def _bytes(*shape: int, largest: int = 2) -> torch.Tensor:
    return torch.randint(largest + 1, shape, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3, 24, 64, 100, 130])
@pytest.mark.parametrize(("reset", "is_ternary"), list(itertools.product(("hard", "soft"), (True, False))))
@pytest.mark.parametrize("timesteps", [1, 3])
def test_neurons_are_those_of_the_equations(channels: int, reset: Any, is_ternary: bool, timesteps: int) -> None:
    options: dict[str, Any] = {"decay": 0.3, "reset": reset}
    threshold, scale, shift = torch.rand(channels) + 0.2, torch.randn(channels), torch.randn(channels)
    shape = timesteps * 2, channels, 7, 9
    x, spikes, more = _maps(*shape), _bytes(*shape), _bytes(*shape, largest=255)
    view = (-1, 1, 1)
    current = x + (spikes.float() - 1) + scale.view(view) * (more.float() - 100) + shift.view(view)
    run = ternary_lif if is_ternary else binary_lif
    want = run(current, timesteps, threshold=threshold, **options)
    currents = [Current(x), Current(spikes, None, 1), Current(more, repeated(scale), 100)]
    rest: Any = {"shift": repeated(shift), "is_ternary": is_ternary, **options}
    got, left = kernels.neuron(currents, repeated(threshold), timesteps, keep=True, **rest)
    assert got.dtype == torch.uint8
    assert torch.equal(got.float() - int(is_ternary), want)
    assert 0.1 < want.ne(0).float().mean() < 1, "spikes and silence"

    past, steps = None, []
    for t in range(timesteps):  # the same a step at a time
        now = [c._replace(x=c.x[2 * t : 2 * t + 2]) for c in currents]
        out, past = kernels.neuron(now, repeated(threshold), 1, past=past, keep=True, **rest)
        steps.append(out)
    assert torch.equal(torch.cat(steps), got)
    assert past is not None and left is not None and torch.equal(past, left)  # noqa: PT018


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("levels", [3, 20])
def test_neurons_of_several_levels(channels: int, levels: int) -> None:
    options: dict[str, Any] = {"decay": 0.3, "reset": "soft", "levels": levels}
    x, threshold = (50 if levels > 3 else 1) * _maps(6, channels, 7, 9), torch.rand(channels) / 3 + 0.1
    x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    want = ternary_lif(x, 3, threshold=threshold, **options)
    got, left = kernels.neuron([Current(x)], repeated(threshold), 3, keep=True, is_ternary=True, **options)
    assert torch.equal(got.float() - levels, want)
    assert {-levels, -1, 0, 1, levels} <= set(want.unique().tolist())
    past: torch.Tensor | None = None
    for now, out in zip(x.split(2), got.split(2), strict=True):
        one, past = kernels.neuron(
            [Current(now)], repeated(threshold), 1, past=past, keep=True, is_ternary=True, **options
        )
        assert torch.equal(one, out)
    torch.testing.assert_close(past, left, rtol=0, atol=0, equal_nan=True)


def test_a_static_current_meets_every_step() -> None:
    x, threshold = _maps(2, 5, 4, 4), repeated(torch.full((5,), 0.5))
    got, _ = kernels.neuron(
        [Current(x)], threshold, 4, decay=0.25, reset="hard", is_ternary=True, static_input=True
    )  # fmt: skip
    assert torch.equal(got.float() - 1, ternary_lif(x, 4, static_input=True))


def test_vectors() -> None:
    x, threshold = torch.randn(6, 37), torch.rand(37) + 0.2
    got, _ = kernels.neuron([Current(x)], repeated(threshold), 3, decay=0.25, reset="hard", is_ternary=True)
    assert torch.equal(got.float() - 1, ternary_lif(x, 3, threshold=threshold))


def test_what_is_not_finite() -> None:
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf], [1.0, 1.0, 1.0]])
    got, _ = kernels.neuron([Current(x)], repeated(torch.ones(3)), 2, decay=0.25, reset="hard", is_ternary=True)
    assert torch.equal(got.float() - 1, ternary_lif(x, 2, threshold=1.0))


@pytest.mark.parametrize("channels", [3, 64, 100])
def test_totals(channels: int) -> None:
    x, spikes = _maps(2, channels, 5, 3), _bytes(2, channels, 5, 3)
    scale, shift = torch.randn(channels), torch.randn(channels)
    got = kernels.total([Current(x, repeated(scale)), Current(spikes, None, 1)], repeated(shift))
    assert torch.equal(got, scale.view(-1, 1, 1) * x + (spikes.float() - 1) + shift.view(-1, 1, 1))
    assert torch.equal(kernels.total([Current(spikes, None, 1)]), spikes.float() - 1)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 5, 0)])
@pytest.mark.parametrize("channels", [3, 70])
def test_pools(size: int, stride: int, padding: int, channels: int) -> None:
    spikes = _bytes(2, channels, 9, 11)
    window = (size, size), (stride, stride), (padding, padding)
    sums = F.avg_pool2d(spikes.double() - 1, *window, divisor_override=1)
    assert torch.equal(kernels.pool(spikes, *window, zero_point=1).double() - size**2, sums)
    means = kernels.pool(spikes, *window, zero_point=1, scale=1 / size**2)
    torch.testing.assert_close(means, (sums / size**2).float())


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, spikes = _maps(8, 24, 30, 30), _bytes(8, 24, 30, 30)
    threshold, before = repeated(torch.rand(24) + 0.2), torch.get_num_threads()

    def run() -> list[torch.Tensor | None]:
        currents = [Current(x), Current(spikes, None, 1)]
        fired = kernels.neuron(currents, threshold, 4, decay=0.25, reset="hard", is_ternary=True, keep=True)
        return [*fired, kernels.pool(spikes, (3, 3), (2, 2), (1, 1), zero_point=1)]

    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(alone, run(), strict=True) if a is not None and b is not None)
    finally:
        torch.set_num_threads(before)
