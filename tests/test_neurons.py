"""The neuron as a module: what it learns, what it stores, and that nothing outlives a call."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_tspike.functional import membrane_potential, ternary_lif
from lightning_tspike.neurons import TernaryLIF


def test_matches_functional() -> None:
    neuron = TernaryLIF(4, decay=0.5, threshold=0.3)
    neuron.raw_amplitude.data.fill_(1.7)
    x = torch.randn(8, 3, 5, 5)
    assert torch.equal(neuron(x), ternary_lif(x, 4, torch.tensor(1.7), decay=0.5, threshold=0.3))
    assert torch.equal(neuron.membrane_potential(x), membrane_potential(x, 4, decay=0.5, threshold=0.3))


def test_no_state_between_calls() -> None:
    neuron = TernaryLIF(4)
    x = torch.randn(8, 3)
    first = neuron(x)
    assert set(neuron.state_dict()) == {"raw_amplitude", "threshold"}
    assert torch.equal(neuron(x), first)
    for copied in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(copied(x), first)


def test_amplitude_never_gets_negative_and_learns() -> None:
    neuron = TernaryLIF(1)
    optimizer = torch.optim.SGD(neuron.parameters(), lr=1.5)
    for _ in range(5):
        optimizer.zero_grad()
        neuron(torch.ones(4)).sum().backward()  # wants the amplitude as small as it can get
        optimizer.step()
        assert neuron.amplitude >= 0
    assert neuron.raw_amplitude != 1


def test_amplitude_leaves_zero_again() -> None:
    neuron = TernaryLIF(1)
    neuron.raw_amplitude.data.zero_()
    (-neuron(torch.ones(4)).sum()).backward()
    assert neuron.raw_amplitude.grad == -4


def test_fixed_amplitude_has_no_parameter() -> None:
    neuron = TernaryLIF(2, amplitude="fixed")
    assert list(neuron.parameters()) == []
    x = torch.randn(4, 3)
    assert torch.equal(neuron(x), ternary_lif(x, 2))


def test_static_input_is_shown_at_every_step() -> None:
    neuron = TernaryLIF(3)
    x = torch.randn(2, 4)
    expected = neuron(x.repeat(3, 1))
    neuron.static_input = True
    assert torch.equal(neuron(x), expected)


def test_activation_checkpointing() -> None:
    neuron = TernaryLIF(4)
    x = torch.randn(8, 3, requires_grad=True)
    neuron(x).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(neuron, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps .* 0"),
        ({"timesteps": 4, "amplitude": "pixel"}, "amplitude .* 'pixel'"),
        ({"timesteps": 4, "decay": 1.5}, r"decay .* 1\.5"),
        ({"timesteps": 4, "threshold": 0}, "threshold .* 0"),
        ({"timesteps": 4, "threshold": float("inf")}, "threshold .* inf"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryLIF(**options)
