"""What training minimises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.nn import functional as F

from .losses import distillation_loss, tet_loss
from .synaptic_cost import CostPer, synaptic_cost

__all__ = ["Loss", "Objective"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From the logits of every time step [T, B, K] and the targets ([B], or probabilities [B, K]) to a loss, shape []."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimises; validation and test log the cross-entropy of the time-averaged logits.

    Attributes:
        loss: ``"ce"``, the cross-entropy of the time-averaged logits; ``"tet"``
            (:func:`lightning_tspike.training.tet_loss`); or, in Python, any function of the logits of every time step
            [T, B, K] and the targets. A checkpoint knows only the name of such a function: give it again on loading.
        label_smoothing: Share of the target probability that is spread over all classes, in [0, 1]; in training alone.
        tet_weight: Weight of the regularising term of ``"tet"``, in [0, 1].
        tmpr_weight: Weight of :func:`lightning_tspike.training.membrane_regularization`, added in training; 0 for none.
        synops_weight: Weight of the synaptic operations, as a share of the network's multiply-accumulates
            (:mod:`lightning_tspike.training.synaptic_cost`), added in training: what makes spikes rare; 0 for none.
        synops_target: Share of the multiply-accumulates in (0, 1) below which they cost nothing; None: they always do.
        synops_per: Whether that target is for the ``"network"`` as a whole or for each ``"layer"`` of neurons.
        synops_warmup_epochs: Epochs over which ``synops_weight`` rises linearly from 0.
        teacher: A trained ANN to learn from (:func:`lightning_tspike.training.distillation_loss`): a timm model, e.g.
            ``"resnet50.a1_in1k"``, that knows the same classes and takes the same images. It is loaded when the fit
            begins and is part of no checkpoint.
        teacher_weights: File with the teacher's state_dict, or a checkpoint of it as an ANN; None for timm's
            pretrained weights.
        teacher_weight: Share of the distillation in the loss, in [0, 1].
        teacher_temperature: Its temperature.
        teacher_per_step: Match the teacher at every time step, as ``"tet"`` does the labels, rather than by the
            time-averaged logits.

    Raises:
        ValueError: A number is out of range, or the loss is unknown.
    """

    loss: Literal["ce", "tet"] | Loss = "ce"
    label_smoothing: float = 0.0
    tet_weight: float = 1e-3
    tmpr_weight: float = 0.0
    synops_weight: float = 0.0
    synops_target: float | None = None
    synops_per: CostPer = "network"
    synops_warmup_epochs: int = 0
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 4.0
    teacher_per_step: bool = False

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in ("ce", "tet"):
            raise ValueError(
                f"loss must be 'ce', 'tet' or a function of logits [T, B, K] and targets, got {self.loss!r}; a "
                "checkpoint of a run with such a function needs it again: load_from_checkpoint(path, loss=...)"
            )
        if callable(self.loss) and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing!r} is for 'ce' and 'tet': smooth the labels in your own loss"
            )
        for name in ("tet_weight", "teacher_weight", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if self.tmpr_weight < 0:
            raise ValueError(f"tmpr_weight must not be negative, got {self.tmpr_weight!r}")
        if not 0 <= self.synops_weight < math.inf:
            raise ValueError(f"synops_weight must be a number of at least 0, got {self.synops_weight!r}")
        if self.synops_target is not None and not 0 < self.synops_target < 1:
            raise ValueError(
                f"synops_target must be a share of the multiply-accumulates in (0, 1), or None; got "
                f"{self.synops_target!r}"
            )
        if self.synops_target is not None and not self.synops_weight:
            raise ValueError(
                f"synops_target={self.synops_target!r} is what synops_weight is to reach, which is 0: set "
                "synops_weight=1, say, or leave synops_target out"
            )
        if self.synops_per not in ("network", "layer"):
            raise ValueError(f"synops_per must be 'network' or 'layer', got {self.synops_per!r}")
        if self.synops_warmup_epochs < 0:
            raise ValueError(f"synops_warmup_epochs must be at least 0, got {self.synops_warmup_epochs!r}")
        if self.teacher_temperature <= 0:
            raise ValueError(f"teacher_temperature must be positive, got {self.teacher_temperature!r}")

    @property
    def loss_name(self) -> str:
        """What a checkpoint records of the loss."""
        loss: Any = self.loss
        return loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__)

    def of(self, per_step: Tensor, targets: Tensor, *, taught: Tensor | None = None) -> Tensor:
        """The loss, shape [], without the terms of membrane potentials and synaptic operations.

        Args:
            per_step: Logits [T, B, K].
            targets: Classes [B], or probabilities [B, K].
            taught: The teacher's logits [B, K].

        Raises:
            ValueError: A loss of your own does not give one number.
        """
        if callable(self.loss):
            loss = self.loss(per_step, targets)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(f"the loss {self.loss_name} must give one number, a tensor of shape [], got {loss!r}")
            loss = loss.reshape(())
        elif self.loss == "tet":
            loss = tet_loss(per_step, targets, weight=self.tet_weight, label_smoothing=self.label_smoothing)
        else:
            loss = F.cross_entropy(per_step.mean(0), targets, label_smoothing=self.label_smoothing)
        if taught is None:
            return loss
        ours = per_step if self.teacher_per_step else per_step.mean(0, keepdim=True)
        theirs = taught.repeat(len(ours), 1)  # the mean over time steps is that over more rows
        distillation = distillation_loss(ours.flatten(0, 1), theirs, temperature=self.teacher_temperature)
        return (1 - self.teacher_weight) * loss + self.teacher_weight * distillation

    def of_synops(self, shares: Tensor, most: Tensor, epochs: float, *, seen: Tensor | None = None) -> Tensor:
        """What synaptic operations add to the loss, shape [].

        Args:
            shares: Those of each neuron layer as a share of all MACs, shape [L].
            most: The same if every neuron fires, shape [L].
            epochs: How many have been trained, with the part of the one that runs.
            seen: As for :func:`lightning_tspike.training.synaptic_cost.synaptic_cost`.
        """
        rise = min(1.0, epochs / self.synops_warmup_epochs) if self.synops_warmup_epochs else 1.0
        return rise * self.synops_weight * synaptic_cost(shares, most, self.synops_target, self.synops_per, seen=seen)
