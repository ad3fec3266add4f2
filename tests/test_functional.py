"""The neuron's equations: golden numbers from the paper authors' published code, and properties that must hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_tspike import kernels
from lightning_tspike.functional import binary_lif, membrane_potential, ternary_lif


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-12), ("f32", 1e-5)])
def test_golden(shared: Callable[[str], Path], case: int, precision: str, tolerance: float) -> None:
    golden = np.load(shared("golden/ternary_lif.npz"))

    def number(name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(golden[f"case{case}_{precision}/{name}"]))

    timesteps = number("x").shape[0]
    x = number("x").flatten(0, 1).requires_grad_()
    amplitude = number("amplitude").to(x.dtype).requires_grad_()
    options = {"decay": number("decay").item(), "threshold": number("v_threshold").item() / 2}

    out = ternary_lif(x, timesteps, amplitude, **options)
    (out * number("grad_out").flatten(0, 1)).sum().backward()
    u = membrane_potential(x, timesteps, **options)
    after_reset = torch.where(out == 0, u, 0)

    expected = {
        "out": out.detach(),
        "grad_x": x.grad,
        "mem_after_reset": after_reset,
        "grad_amplitude": amplitude.grad,
    }
    for name, got in expected.items():
        want = number(name)
        want = want.flatten(0, 1) if want.ndim > 1 else want
        torch.testing.assert_close(got, want.to(got.dtype), rtol=tolerance, atol=tolerance, msg=f"{name} differs")


def test_equations_step_by_step() -> None:
    """One neuron by hand: leak 0.25, threshold 0.5, hard reset."""
    x = torch.tensor([[0.4], [0.45], [0.2], [-2.0], [0.1]])
    # u: 0.4 | 0.1 + 0.45 = 0.55 fires | 0 + 0.2 | 0.05 - 2 = -1.95 fires | 0 + 0.1
    assert ternary_lif(x, 5, 3.0).flatten().tolist() == [0, 3, 0, -3, 0]
    torch.testing.assert_close(membrane_potential(x, 5).flatten(), torch.tensor([0.4, 0.55, 0.2, -1.95, 0.1]))


def test_threshold_is_inclusive_on_both_sides() -> None:
    below = float(np.nextafter(0.5, 0))
    x = torch.tensor([0.5, -0.5, below, -below], dtype=torch.float64)
    assert ternary_lif(x, 1).tolist() == [1, -1, 0, 0]


def test_odd_symmetry_and_homogeneity() -> None:
    x = torch.randn(12, 5, dtype=torch.float64)
    assert torch.equal(ternary_lif(-x, 4), -ternary_lif(x, 4))
    assert torch.equal(ternary_lif(4 * x, 4, threshold=2.0), ternary_lif(x, 4, threshold=0.5))  # powers of 2: exact


def test_amplitude_and_threshold_per_channel() -> None:
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    amplitude = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    threshold = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    out = ternary_lif(x, 2, amplitude, threshold=threshold)
    for c in range(3):
        alone = ternary_lif(x[:, c], 2, amplitude[c].item(), threshold=threshold[c].item())
        assert torch.equal(out[:, c], alone)


def test_detached_reset_cuts_the_gradient_through_the_spike() -> None:
    """du_2/du_1 = decay * (1 - |s_1|) - decay * u_1 * s_1 / w; the second term is the one through the reset."""
    x = torch.tensor([[0.8], [0.1]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    (ternary_lif(x, 2) * weight).sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx([-0.25 * 0.8, 1.0])
    x.grad = None
    (ternary_lif(x, 2, detach_reset=True) * weight).sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx([0.0, 1.0])


def test_surrogate_is_a_box_of_width_two_thresholds() -> None:
    x = torch.tensor([0.0, 0.49, 0.5, 0.99, 1.01, -0.99, -1.01], dtype=torch.float64, requires_grad=True)
    ternary_lif(x, 1).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_integrates_in_single(dtype: torch.dtype) -> None:
    x = torch.randn(8, 32).to(dtype).requires_grad_()
    amplitude = torch.tensor([1.0], requires_grad=True).expand(32)
    out = ternary_lif(x, 8, amplitude)
    assert out.dtype == dtype
    assert torch.equal(out.float(), ternary_lif(x.float(), 8))
    out.float().sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_the_amplitude_is_summed_in_single_precision(dtype: torch.dtype) -> None:
    amplitude = torch.tensor(1.0, requires_grad=True)
    ternary_lif(torch.ones(100_001, dtype=dtype), 1, amplitude).backward(torch.ones(100_001, dtype=dtype))
    assert amplitude.grad.item() == 100_001  # more than float16 can hold, finer than bfloat16 can tell


def test_nan_never_fires_and_infinity_does() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert ternary_lif(x, 1).tolist() == [0, 1, -1]


def test_empty_batch() -> None:
    assert ternary_lif(torch.empty(0, 3), 4).shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "timesteps", "message"),
    [((4,), 0, "timesteps .* 0"), ((4,), 2.0, r"2\.0"), ((4,), True, "True"), ((5, 2), 2, "no multiple of 2")],
)
def test_bad_timesteps(shape: tuple[int, ...], timesteps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ternary_lif(torch.zeros(shape), timesteps)
    with pytest.raises(ValueError, match=message):
        membrane_potential(torch.zeros(shape), timesteps)


@pytest.mark.parametrize("name", ["reference", "native", "loops"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_whole_numbers_are_taken_as_floats(name: str, dtype: torch.dtype) -> None:
    """Spikes have the amplitude's size, not what is left of it in a whole number."""
    x = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    with kernels.use(name):
        out = ternary_lif(x, 2, 0.7)
    assert torch.equal(out, torch.tensor([[0.7, 0.0], [0.0, 0.7]]))
    assert torch.equal(membrane_potential(x, 2, decay=1.0), x.float())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_numbers_that_no_neuron_has(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"x must hold real numbers .*, got {dtype}"):
        ternary_lif(torch.ones(2, 3).to(dtype), 2)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("threshold", v) for v in (-1.0, 0.0, NAN, INFINITY, 1e-40, 1e39)),
        *(("decay", v) for v in (-0.1, 2.0, NAN)),
        *(("amplitude", v) for v in (-1.0, NAN, INFINITY)),
    ],
)
@pytest.mark.parametrize("kind", ["number", "tensor", "channels"])
@pytest.mark.parametrize("name", ["reference", "native", "loops"])
def test_numbers_out_of_range(name: str, kind: str, option: str, value: float) -> None:
    wrong: Any = value
    if kind == "channels" and option == "decay":
        pytest.skip("there is one decay for all")
    if kind != "number" and option == "amplitude":
        pytest.skip("a learned amplitude that has become NaN shows in the loss")
    said = re.escape(repr(value)) if kind == "number" else ""  # a tensor rounds
    if kind != "number":
        wrong = torch.tensor(value) if kind == "tensor" else torch.tensor([0.5, value, 0.5])
    with kernels.use(name):
        for neuron in (ternary_lif, binary_lif):
            with pytest.raises(ValueError, match=f"{option} must be between .*, got {said}"):
                neuron(torch.ones(2, 3), 2, **{option: wrong})
    if option != "amplitude":
        with pytest.raises(ValueError, match=f"{option} must be between"):
            membrane_potential(torch.ones(2, 3), 2, **{option: wrong})


def test_numbers_of_a_wrong_kind() -> None:
    with pytest.raises(ValueError, match="threshold must be a number or a tensor, got '0.5'"):
        ternary_lif(torch.ones(2, 3), 2, threshold="0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decay must be one number, got a tensor of shape \(3,\)"):
        ternary_lif(torch.ones(2, 3), 2, decay=torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("name", ["reference", "native", "loops"])
def test_one_number_may_have_a_dimension(name: str) -> None:
    """FSDP shards no tensor of shape []."""
    x = torch.randn(4, 3, dtype=torch.float64)
    results = []
    for shape in ((), (1,)):
        values = [torch.full(shape, v, dtype=x.dtype, requires_grad=True) for v in (0.7, 0.6, 0.3)]
        with kernels.use(name):
            out = ternary_lif(x, 2, values[0], threshold=values[1], decay=values[2])
        out.square().sum().backward()
        results.append([out.detach(), *(v.grad.reshape(()) for v in values)])
    torch.testing.assert_close(*results)
