"""Surrogate gradients: shape, area, and that the backward pass is the derivative of what they stand for."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_tspike.functional import Complement, binary_lif, integrate_and_fire, ternary_lif
from lightning_tspike.surrogate import SURROGATES


@pytest.mark.parametrize("threshold", [0.5, 1.3])
@pytest.mark.parametrize("is_ternary", [True, False])
@pytest.mark.parametrize("name", SURROGATES)
def test_area_is_the_height_of_the_steps(name: str, is_ternary: bool, threshold: float) -> None:
    """s rises by 1 from -1 to 0 and from 0 to +1, a binary spike once."""
    u = torch.linspace(-400, 400, 4_000_001, dtype=torch.float64)
    area = torch.trapezoid(SURROGATES[name](u, torch.tensor(threshold), is_ternary), u)
    assert area.item() == pytest.approx(2 if is_ternary else 1, rel=2e-3)


@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("name", SURROGATES)
def test_several_levels_are_the_sum_of_their_steps(name: str, levels: int) -> None:
    u = torch.linspace(-12, 12, 24_007, dtype=torch.float64)
    theta, surrogate = torch.tensor(0.7, dtype=torch.float64), SURROGATES[name]
    steps = [sign * u - 2 * level * theta for level in range(levels) for sign in (1, -1)]
    want = torch.stack([surrogate(step, theta, False) for step in steps]).sum(0)
    torch.testing.assert_close(surrogate(u, theta, True, levels), want)


@pytest.mark.parametrize("name", SURROGATES)
def test_ternary_is_the_sum_of_both_steps(name: str) -> None:
    u = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    u = u[u != 0]  # an edge of both boxes of the rectangular one
    theta = torch.tensor(0.7, dtype=torch.float64)
    surrogate = SURROGATES[name]
    torch.testing.assert_close(surrogate(u, theta, True), surrogate(u, theta, False) + surrogate(-u, theta, False))


def test_values_by_hand() -> None:
    u = torch.tensor([0.0, 0.25, 0.5, 1.25, -0.75])
    theta = torch.tensor(0.5)
    assert SURROGATES["triangular"](u, theta, True).tolist() == [0, 1, 2, 0, 1]
    assert SURROGATES["triangular"](u, theta, False).tolist() == [0, 1, 2, 0, 0]
    assert SURROGATES["rectangular"](u, theta, True).tolist() == [1, 1, 1, 0, 1]
    assert SURROGATES["rectangular"](u, theta, False).tolist() == [0, 1, 1, 0, 0]
    assert SURROGATES["arctan"](u[2:3], theta, False).tolist() == [2]
    other = 1 / (1 + (2 * math.pi) ** 2)
    assert SURROGATES["arctan"](u[2:3], theta, True).item() == pytest.approx(2 * (1 + other))


def _smooth(is_ternary: bool):  # noqa: ANN202
    """The function whose derivative the arctan surrogate is."""

    def fire(u: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        v = u / theta
        upper = (math.pi * (v - 1)).atan() / math.pi
        return upper + (math.pi * (v + 1)).atan() / math.pi if is_ternary else upper + 0.5

    return fire


@pytest.mark.parametrize("is_ternary", [True, False])
def test_spike_has_the_smooth_functions_derivatives(is_ternary: bool) -> None:
    u = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 3, dtype=torch.float64)
    spike = (ternary_lif if is_ternary else binary_lif)(u, 1, threshold=theta, surrogate="arctan")
    got = torch.autograd.grad((spike * weight).sum(), (u, theta))
    want = torch.autograd.grad((_smooth(is_ternary)(u, theta) * weight).sum(), (u, theta))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("variant", [None, "static", "events"])
@pytest.mark.parametrize("is_ternary", [True, False])
def test_smooth_neuron_passes_gradcheck(is_ternary: bool, variant: str | None, reset: str) -> None:
    """The core with a smooth spike is differentiable in all that can be learned."""
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    decay, threshold, *numbers = (torch.tensor(v, dtype=torch.float64, requires_grad=True)
                                  for v in (0.4, 0.6, 0.3, 0.7, 0.6))  # fmt: skip

    def run(x, decay, threshold, *numbers):  # noqa: ANN001, ANN002, ANN202
        complement = Complement(*numbers, variant) if variant else None
        options = {"decay": decay, "threshold": threshold, "reset": reset, "complement": complement}
        return integrate_and_fire(x, 3, _smooth(is_ternary), **options)

    assert torch.autograd.gradcheck(run, (x, decay, threshold, *(numbers if variant else ())))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="surrogate must be one of .*'arctan'.*, got 'box'"):
        ternary_lif(torch.zeros(2), 1, surrogate="box")
    with pytest.raises(ValueError, match="reset must be 'hard' or 'soft', got 'none'"):
        ternary_lif(torch.zeros(2), 1, reset="none")
