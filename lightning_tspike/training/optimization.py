"""The optimizer, by timm, and which of the parameters it treats in which way."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ..graph.operations import ALL_NORMS
from ..network.spiking_network import SpikingNetwork
from ..store.checkpoint import reshape_scalars

__all__ = ["OptimizerOptions", "create_optimizer"]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the loss is minimised.

    Attributes:
        opt: Optimizer, a name that timm.optim knows. ``"sgd"`` has Nesterov's momentum, ``"momentum"`` the plain one;
            ``"lookahead_"`` before a name adds Lookahead (arXiv 1907.08610).
        lr: Learning rate at its peak.
        momentum: Momentum, for the optimizers that have one.
        weight_decay: Weight decay. Biases, norms and what neurons learn (amplitudes, thresholds, decays) are exempt,
            and whatever the model's own ``no_weight_decay()`` names.
        norm_bias_lr_scale: Factor on the learning rate of the biases of norms, which in a spiking network shift
            membrane potentials; 64 in short trainings on CIFAR-10 (Jordan 2024, arXiv 2404.00498).
        sched: Learning-rate schedule, a name that timm.scheduler knows; ``"none"`` for none. It is updated after every
            epoch, or after every step where the trainer has ``max_steps`` or ``max_time`` alone. ``"triangular"``,
            linearly up and linearly down to 0, is updated after every step.
        warmup_epochs: Epochs over which the learning rate rises linearly to its peak; parts of epochs for
            ``"triangular"`` alone.

    Raises:
        ValueError: timm has no such optimizer (the message has close names), or a number is out of range.
    """

    opt: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_bias_lr_scale: float = 1.0
    sched: str = "cosine"
    warmup_epochs: float = 0

    def __post_init__(self) -> None:
        known = [str(name) for name in list_optimizers()]
        if self.opt.lower().removeprefix("lookahead_") not in known:
            close = difflib.get_close_matches(self.opt, known, n=3) or known
            raise ValueError(f"timm has no optimizer {self.opt!r}; it has {', '.join(close)}")
        if not self.norm_bias_lr_scale > 0:
            raise ValueError(f"norm_bias_lr_scale must be positive, got {self.norm_bias_lr_scale!r}")


def create_optimizer(network: SpikingNetwork, options: OptimizerOptions) -> Optimizer:
    """The optimizer of a network.

    Its groups of parameters are those of timm, first what weight decay spares, then the others; with
    ``norm_bias_lr_scale``, the biases of norms are a last group. It also loads states that were saved before weight
    decay spared all that it does now.

    Raises:
        ValueError: ``norm_bias_lr_scale`` is given and no norm has a bias that is trained.
    """

    def with_norm_biases(network: nn.Module) -> list[dict[str, Any]]:
        return _with_norm_biases(network, options)

    optimizer = create_optimizer_v2(
        network,
        options.opt,
        lr=options.lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        param_group_fn=None if options.norm_bias_lr_scale == 1 else with_norm_biases,
    )
    loads: Any = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead leaves it to another
    loads.register_load_state_dict_pre_hook(_regroup(network, options.weight_decay))
    loads.register_load_state_dict_pre_hook(reshape_scalars)
    return optimizer


def _with_norm_biases(network: Any, options: OptimizerOptions) -> list[dict[str, Any]]:
    biases = [m.bias for m in network.modules() if isinstance(m, ALL_NORMS) and getattr(m, "bias", None) is not None]
    biases = list(dict.fromkeys(bias for bias in biases if bias.requires_grad))
    if not biases:
        raise ValueError(
            f"norm_bias_lr_scale={options.norm_bias_lr_scale!r} is for the biases of norms, and this network has none "
            "that are trained: leave it at 1"
        )
    groups = param_groups_weight_decay(
        network, options.weight_decay, no_weight_decay_list=tuple(network.no_weight_decay())
    )
    taken = set(biases)
    groups = [{**group, "params": [p for p in group["params"] if p not in taken]} for group in groups]
    lr = options.lr * options.norm_bias_lr_scale
    return [*(g for g in groups if g["params"]), {"params": biases, "weight_decay": 0.0, "lr": lr}]


def _regroup(network: nn.Module, weight_decay: float) -> Callable[[Optimizer, dict[str, Any]], dict[str, Any]]:
    """A state whose groups are those of parameters of one dimension and all others becomes one with ours."""

    def hook(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        saved, ours = state["param_groups"], optimizer.param_groups
        before = param_groups_weight_decay(network, weight_decay)
        if len(saved) != len(ours) or [len(g["params"]) for g in saved] != [len(g["params"]) for g in before]:
            return state
        keys = {
            parameter: key
            for old, group in zip(before, saved, strict=True)
            for parameter, key in zip(old["params"], group["params"], strict=True)
        }
        groups = [{**group, "params": [keys[p] for p in new["params"]]} for group, new in zip(saved, ours, strict=True)]
        return {**state, "param_groups": groups}

    return hook
