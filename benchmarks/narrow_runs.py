"""Narrow versions of the recipe ``cifar10_fast``, minutes each: the trainings that benchmarks compare.

T = 1 in the first 60 % of the epochs and another T after; ANNs have no time steps. A run's name says all that sets it
apart, and the lines of all runs of a dataset are in one file, so that benchmarks which ask for the same one train it
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .training_runs import FitRun

__all__ = [
    "BACKBONE",
    "CHANGES",
    "DATASETS",
    "EPOCHS",
    "KINDS",
    "RECIPE",
    "SEEDS",
    "event_run",
    "narrow_run",
    "results_file",
]

RECIPE = "cifar10_fast"
BACKBONE = "tspike_fast_resnet_small"
EPOCHS = 6
SEEDS = (0, 1, 2)
TIMESTEPS = 2
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"title": "CIFAR-10", "in_chans": 3},
    "fashion_mnist": {"title": "Fashion-MNIST", "in_chans": 1},
}
KINDS: dict[str, dict[str, Any]] = {
    "ternary, channel": {"neuron": "ternary_lif", "amplitude": "channel"},
    "ternary, layer": {"neuron": "ternary_lif", "amplitude": "layer"},
    "ternary, fixed": {"neuron": "ternary_lif", "amplitude": "fixed"},
    "ternary, coupled": {"neuron": "ternary_lif", "amplitude": "layer", "couple_threshold": True},
    "ternary, 2 levels": {"neuron": "ternary_if", "amplitude": "channel", "reset": "soft", "levels": 2},
    "binary": {"neuron": "binary_lif", "amplitude": "channel"},
    "binary, fixed": {"neuron": "binary_lif", "amplitude": "fixed"},
    "quantised ANN": {"neuron": "quantized", "amplitude": "channel", "timesteps": 1},
    "ANN": {"neuron": "none", "timesteps": 1},
}
# where biases of norms start: away from 0 for activations that are odd functions, see models/fast_resnet.py
START = dict.fromkeys(KINDS, -0.5) | dict.fromkeys(("binary", "binary, fixed", "ANN"), 0.0)
WEIGHT = 3.0
# what else may be changed in the recipe, as words of ``tspike fit``; None leaves a word out, ANN stands for the narrow
# ANN's checkpoint
ANN = "ANN"
CHANGES: dict[str, dict[str, Any]] = {
    "norm-free": {"model.backbone_kwargs.norm_free_gain": 1.27, "model.norm_bias_lr_scale": 1},
    # shortcuts that carry spikes, where the amplitude of a layer is live in spite of the norms
    "spike shortcuts": {
        "model.backbone": "tspike_resnet_small",
        "model.backbone_kwargs": "{}",  # not the recipe's
        "model.backbone_kwargs.norm_bias": None,
    },
    "wide": {"model.backbone": "tspike_fast_resnet"},
    "TET": {"model.loss": "tet"},
    "mixup and cutmix": {"data.mixup": 0.2, "data.cutmix": 1.0},
    "teacher": {"model.teacher": BACKBONE, "model.teacher_weights": ANN},
    "teacher per step": {"model.teacher": BACKBONE, "model.teacher_weights": ANN, "model.teacher_per_step": True},
    "from the ANN": {"model.pretrained": ANN, "model.lr": 0.1},
}


def narrow_run(
    dataset: str,
    kind: str,
    seed: int,
    data: Sequence[str],
    *,
    target: float | None = None,
    change: str | None = None,
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
        change: Of CHANGES; None for the recipe as it is.
        epochs: Of the training.
        timesteps: T.
    """
    words = {
        "model.backbone": BACKBONE,
        "model.timesteps": timesteps,
        "model.in_chans": DATASETS[dataset]["in_chans"],
        **{f"model.{name}": value for name, value in KINDS[kind].items()},
        "model.backbone_kwargs.norm_bias": START[kind],
        "model.warmup_epochs": epochs / 5,
    }
    if target is not None:
        words |= {
            "model.synops_weight": WEIGHT,
            "model.synops_target": target,
            "model.synops_warmup_epochs": epochs // 4,
        }
    changed = CHANGES[change] if change else {}
    facts = _facts(dataset, kind, seed, words["model.timesteps"], epochs, target=target, change=change)
    words |= {name: value for name, value in changed.items() if value != ANN}
    options = [f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"]
    needs = [f"--{name}" for name, value in changed.items() if value == ANN]
    return FitRun(
        _name(facts),
        RECIPE,
        (f"--data.dataset={dataset}", *data),
        (*options, *(f"--{name}={value}" for name, value in words.items() if value is not None)),
        facts,
        ann=narrow_run(dataset, "ANN", seed, data, epochs=epochs) if needs else None,
        ann_option=needs[0] if needs else None,
    )


def event_run(kind: str, seed: int, data: Sequence[str]) -> FitRun:
    """One training of the recipe ``nmnist``; all kinds have its T frames.

    Args:
        kind: Of KINDS.
        seed: Of everything.
        data: Words ``--data...`` that say where the recordings are.
    """
    model = {name: value for name, value in KINDS[kind].items() if name != "timesteps"}
    model["backbone_kwargs.norm_bias"] = START[kind]
    facts = _facts("nmnist", kind, seed, 4, 20)
    options = (f"--seed_everything={seed}", "--trainer.max_epochs=20")
    words = (f"--model.{name}={value}" for name, value in model.items())
    return FitRun(_name(facts), "nmnist", tuple(data), (*options, *words), facts)


def results_file(folder: Path, dataset: str) -> Path:
    """Where the lines of a dataset's runs are."""
    return folder / f"narrow_runs_{dataset}.jsonl"


def _facts(
    dataset: str,
    kind: str,
    seed: int,
    timesteps: int,
    epochs: int,
    *,
    target: float | None = None,
    change: str | None = None,
) -> dict[str, Any]:
    """What stands beside a run's results, in this order."""
    return {
        "dataset": dataset,
        "kind": kind,
        "timesteps": timesteps,
        "target": target,
        "change": change,
        "seed": seed,
        "epochs": epochs,
    }


def _name(facts: dict[str, Any]) -> str:
    """What sets a run apart: ``cifar10_ternary-channel_T2_target0.3_seed0_epochs6``."""
    target = None if facts["target"] is None else f"target{facts['target']}"
    ends = (f"T{facts['timesteps']}", target, facts["change"], f"seed{facts['seed']}", f"epochs{facts['epochs']}")
    parts = [facts["dataset"], facts["kind"], *(end for end in ends if end)]
    return "_".join(part.replace(", ", "-").replace(" ", "-") for part in parts)
