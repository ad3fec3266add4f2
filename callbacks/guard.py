"""Look after a run that nobody watches: stop, skip or warn where numbers or layers of neurons go wrong."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from .._batches import images_of
from .._observe import observed, unseen
from ..analysis.layer_health import MEMBRANE_LIMIT, SATURATED_ABOVE, SILENT_BELOW, LayerHealth, layer_health
from ..network.spiking_network import SpikingNetwork
from ._common import BatchObserver, network_of

__all__ = ["GuardError", "TrainingGuard"]

OnNonFinite = Literal["stop", "skip", "warn"]
OnLayers = Literal["stop", "warn"]

_NAMES = 3  # in a message


class GuardError(RuntimeError):
    """A training was stopped by :class:`TrainingGuard`; the message names what went wrong, and where."""


class TrainingGuard(BatchObserver):
    """Stops a run, leaves a step out or warns where the loss, a gradient or a layer of neurons goes wrong.

    **At every optimizer step** the loss and all gradients must be finite, in every process: they decide together. With
    16-bit floats (``16-mixed``) infinite gradients are usual, and Lightning leaves these steps out by itself, so that
    only the loss is looked at. The message names what is not finite: a weight, the first layer whose output is, or a
    gradient.

    **Every n steps**, over a training batch of the first process, each layer of neurons is

    * *silent*, where no more than ``silent_below`` of its neurons fire,
    * *saturated*, where ``saturated_above`` of them fire or more,
    * *exploding*, where the mean of abs(u) / theta, its membrane potential in thresholds, is above ``membrane_limit``
      or not finite: a neuron whose membrane potential is NaN never fires, so the loss shows nothing of it.

    A layer is named when it begins to be so. Where steps were left out, ``skipped_steps`` counts them in every logger.

    Args:
        on_nonfinite: ``"stop"`` ends the run with an error; checkpoints stay what they were. ``"skip"`` leaves the step
            out: weights, the optimizer's state and buffers, such as statistics of batch norms, stay what they were.
            ``"warn"`` goes on.
        on_layers: ``"warn"``, or ``"stop"`` as above.
        most_skips: So many steps left out one after the other end the run.
        silent_below: Firing rate in [0, 1).
        saturated_above: Firing rate in (0, 1]; above 1 nothing counts as saturated.
        membrane_limit: In thresholds; the surrogate gradient of the published neuron is 0 from 2 on.
        every_n_steps: Look at the layers every n optimizer steps; by default as often as the trainer logs.

    Raises:
        MisconfigurationException: An option is out of range, or the module has no spiking network in ``network``.
        GuardError: While training, as the options say.
    """

    def __init__(
        self,
        on_nonfinite: OnNonFinite = "stop",
        on_layers: OnLayers = "warn",
        *,
        most_skips: int = 20,
        silent_below: float = SILENT_BELOW,
        saturated_above: float = SATURATED_ABOVE,
        membrane_limit: float = MEMBRANE_LIMIT,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        for name, value, known in (
            ("on_nonfinite", on_nonfinite, get_args(OnNonFinite)),
            ("on_layers", on_layers, get_args(OnLayers)),
        ):
            if value not in known:
                raise MisconfigurationException(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if most_skips < 1:
            raise MisconfigurationException(f"most_skips must be at least 1 step, got {most_skips!r}")
        if not 0 <= silent_below < saturated_above:
            raise MisconfigurationException(
                f"silent_below must be a firing rate below saturated_above, got {silent_below!r} and "
                f"{saturated_above!r}"
            )
        if membrane_limit <= 0:
            raise MisconfigurationException(f"membrane_limit must be positive, got {membrane_limit!r}")
        self.on_nonfinite, self.on_layers = on_nonfinite, on_layers
        self.most_skips = most_skips
        self._limits = {
            "silent_below": silent_below, "saturated_above": saturated_above, "membrane_limit": membrane_limit
        }  # fmt: skip
        self._skipped = self._in_a_row = 0
        self._in_trouble: dict[str, str] = {}  # layers by name, and how, when they were looked at last
        self._found = ""  # of the batch that was looked at
        # of the step that is under way: whether its losses are finite, what it may have to be taken back to
        self._loss_is_finite: Tensor | None = None
        self._buffers: dict[str, Tensor] = {}
        self._batch: object = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network_of(pl_module, self)  # a guard needs no logger

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped = state_dict["skipped"]

    # -- at every step: loss and gradients

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch = batch
        if self.on_nonfinite == "skip" and self._loss_is_finite is None:  # the first batch of the step
            self._buffers = _buffers_of(pl_module)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        is_finite = loss.detach().isfinite().all()
        self._loss_is_finite = is_finite if self._loss_is_finite is None else self._loss_is_finite & is_finite

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        is_finite = self._loss_is_finite is None or bool(self._loss_is_finite)
        if trainer.scaler is None:
            is_finite = is_finite and _are_finite([p.grad for p in pl_module.parameters() if p.grad is not None])
        if trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            self._in_a_row = 0
            self._forget_step()
            return
        place = _what_is_not_finite(pl_module, network_of(pl_module, self), self._batch)
        problem = f"step {trainer.global_step}: the loss or its gradient is not finite: {place}"
        if self.on_nonfinite == "skip":
            self._skip(trainer, pl_module, optimizer, problem)
        elif self.on_nonfinite == "stop":
            raise GuardError(
                f"{problem}. A smaller lr, gradient clipping (the trainer's gradient_clip_val) or bfloat16 instead of "
                "float16 may help; TrainingGuard(on_nonfinite='skip') leaves such steps out"
            )
        elif not self._in_a_row:  # once, not for every step of a network that is lost
            rank_zero_warn(problem)
        self._in_a_row += 1
        self._forget_step()

    def _skip(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, problem: str) -> None:
        """Leave this step out, or end the run where too many were."""
        if self._in_a_row + 1 >= self.most_skips:
            raise GuardError(f"{problem}. {self.most_skips} steps in a row were left out, so the network is lost")
        optimizer.zero_grad(set_to_none=True)  # optimizers leave parameters without a gradient alone
        _put_back(pl_module, self._buffers)
        self._skipped += 1
        for logger in trainer.loggers:
            logger.log_metrics({"skipped_steps": float(self._skipped)}, step=trainer.global_step)
        rank_zero_warn(f"{problem}; the step is left out")

    def _forget_step(self) -> None:
        self._loss_is_finite, self._buffers, self._batch = None, {}, None

    # -- every n steps: the layers of neurons

    @override
    def observe(self, network: SpikingNetwork) -> AbstractContextManager[dict[str, LayerHealth]]:
        return layer_health(network)

    @override
    def record(self, trainer: Trainer, observed: dict[str, LayerHealth], step: int) -> None:
        before, self._in_trouble = self._in_trouble, {}
        new = []
        for name, layer in observed.items():
            if trouble := layer.trouble(**self._limits):
                word, text = trouble
                self._in_trouble[name] = word
                if before.get(name) != word:
                    new.append(f"{name} is {text}")
        self._found = f"step {step}: {_listed(new)}" if new else ""

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._found = ""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.on_layers == "stop" and self._is_due:  # the other processes end as well
            self._found = trainer.strategy.broadcast(self._found)
            if self._found:
                raise GuardError(
                    f"{self._found}. Look at firing_rate and membrane in the run's report; initial_rate=0.2 sets "
                    "thresholds by firing rate when a fit begins, a smaller lr keeps membranes within reach"
                )
        elif self._found:
            rank_zero_warn(self._found)


def _are_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are: one wait for the device, whatever their number."""
    if not tensors:
        return True
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _what_is_not_finite(module: LightningModule, network: SpikingNetwork, batch: object) -> str:
    """Where it comes from: weights, else the first layer that gives it, else gradients."""
    if weights := [name for name, p in module.named_parameters() if not _are_finite([p.detach()])]:
        return f"the weights {_listed(weights)} were lost before"
    if layer := _first_layer(network, batch):
        return f"{layer} is the first layer whose output is not"
    gradients = [name for name, p in module.named_parameters() if p.grad is not None and not _are_finite([p.grad])]
    if gradients:
        return f"the gradients of {_listed(gradients)} are not, while all outputs are"
    return "in another process, or in the loss itself"


def _first_layer(network: SpikingNetwork, batch: object) -> str | None:
    """The first module, in the order of their calls, that makes NaN or infinite numbers of this batch."""
    found: list[str] = []

    def look(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if not found and isinstance(output, Tensor) and not _are_finite([output]):
            found.append(name)

    kept = _buffers_of(network)
    with torch.no_grad(), unseen(), observed(), ExitStack() as hooks:  # other observers have seen this batch
        for name, module in network.model.named_modules():
            if next(module.children(), None) is None:
                hooks.callback(module.register_forward_hook(partial(look, name)).remove)
        network(images_of(batch, next(network.parameters()).dtype))
    _put_back(network, kept)
    return found[0] if found else None


def _buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@torch.no_grad()
def _put_back(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
