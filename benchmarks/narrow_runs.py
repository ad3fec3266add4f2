"""Narrow versions of the recipe ``cifar10_fast``, minutes each: the trainings that benchmarks compare.

T = 1 in the first 60 % of the epochs and T = 2 after, or another T; ANNs have no time steps. A run's name says all that
sets it apart, so that benchmarks which ask for the same one train it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .training_runs import FitRun

__all__ = ["DATASETS", "EPOCHS", "KINDS", "RECIPE", "narrow_run"]

RECIPE = "cifar10_fast"
EPOCHS = 6
TIMESTEPS = 2
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"title": "CIFAR-10", "in_chans": 3, "widths": [24, 96, 96]},
    "fashion_mnist": {"title": "Fashion-MNIST", "in_chans": 1, "widths": [16, 64, 64]},
}
KINDS: dict[str, dict[str, Any]] = {
    "ternary, channel": {"neuron": "ternary_lif", "amplitude": "channel"},
    "ternary, layer": {"neuron": "ternary_lif", "amplitude": "layer"},
    "ternary, fixed": {"neuron": "ternary_lif", "amplitude": "fixed"},
    "ternary, 2 levels": {"neuron": "ternary_if", "amplitude": "channel", "reset": "soft", "levels": 2},
    "binary": {"neuron": "binary_lif", "amplitude": "channel"},
    "quantised ANN": {"neuron": "quantized", "amplitude": "channel", "timesteps": 1},
    "ANN": {"neuron": "none", "timesteps": 1},
}
# where biases of norms start: away from 0 for activations that are odd functions, see models/fast_resnet.py
START = dict.fromkeys(KINDS, -0.5) | {"binary": 0.0, "ANN": 0.0}
WEIGHT = 3.0


def narrow_run(
    dataset: str,
    kind: str,
    seed: int,
    data: Sequence[str],
    *,
    target: float | None = None,
    epochs: int = EPOCHS,
    timesteps: int = TIMESTEPS,
) -> FitRun:
    """One training.

    Args:
        dataset: Of DATASETS.
        kind: Of KINDS; those without time steps have T = 1 whatever is asked for.
        seed: Of everything.
        data: Words ``--data...`` that say where the data are.
        target: ``synops_target``; None for no cost of synaptic operations.
        epochs: Of the training.
        timesteps: T.
    """
    shape = DATASETS[dataset]
    model = {
        "timesteps": timesteps,
        "in_chans": shape["in_chans"],
        **KINDS[kind],
        "backbone_kwargs.widths": shape["widths"],
        "backbone_kwargs.norm_bias": START[kind],
        "warmup_epochs": epochs / 5,
    }
    if target is not None:
        model |= {"synops_weight": WEIGHT, "synops_target": target, "synops_warmup_epochs": epochs // 4}
    words = [f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"]
    options = (*words, *(f"--model.{name}={value}" for name, value in model.items()))
    facts = {
        "dataset": dataset,
        "kind": kind,
        "timesteps": model["timesteps"],
        "target": target,
        "seed": seed,
        "epochs": epochs,
    }
    return FitRun(_name(facts), RECIPE, (f"--data.dataset={dataset}", *data), options, facts)


def _name(facts: dict[str, Any]) -> str:
    """What sets a run apart: ``cifar10_ternary-channel_T2_target0.3_seed0_epochs6``."""
    kind = facts["kind"].replace(", ", "-").replace(" ", "-")
    target = "" if facts["target"] is None else f"_target{facts['target']}"
    return f"{facts['dataset']}_{kind}_T{facts['timesteps']}{target}_seed{facts['seed']}_epochs{facts['epochs']}"
