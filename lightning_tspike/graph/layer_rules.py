"""What layers with numbers of their own do with gauges: one class a kind of layer, registered in :data:`LAYER_RULES`.

Each of them can take up a gauge on either side, so its two sides are independent of each other. A rule says how the
numbers change, and what the layer does with a scale in training, where a norm may divide it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..neurons import SpikingNeuron
from . import operations as ops
from .operations import NORMS, OTHER_NORMS, WEIGHTED

__all__ = ["LAYER_RULES", "LayerRule", "ScaleWalk", "absorbs", "exposed", "for_weights", "layer_of", "layer_rule_of"]


class ScaleWalk(Protocol):
    """A walk that follows scales in training (:class:`lightning_tspike.graph.TrainingScales`)."""

    ids: dict[fx.Node, Any]

    def along(self, ids: Tensor, axis: int) -> Tensor:
        """Unite along all dimensions but one; gives the ids along that one."""

    def unite(self, a: Tensor, b: Tensor) -> None:
        """These ids stand for the same scales."""

    def unite_all(self, *ids: Tensor) -> Tensor:
        """Make all of them one."""

    def pin(self, ids: Any) -> None:
        """There the scale matters."""

    def emitted(self, neuron: SpikingNeuron, ids: Tensor) -> Tensor:
        """Ids of a neuron's spikes."""

    def is_norm(self, node: fx.Node) -> bool:
        """Whether a node is a batch norm."""


class LayerRule:
    """One kind of layer.

    Attributes:
        covers: What it is for, in the table.
        gauges: How its numbers change, in the table.
        spikes: Whether spikes stay spikes, in the table.
        modules: Its types.
        functions: Functions that are such a layer where they are called with the numbers of one.
    """

    covers: ClassVar[str]
    gauges: ClassVar[str]
    spikes: ClassVar[str] = "no"
    modules: ClassVar[tuple[type[nn.Module], ...]]
    functions: ClassVar[frozenset[Callable[..., Any]]] = frozenset()

    def channel_axis(self, module: nn.Module) -> int:
        """Dimension along which the layer's numbers run."""
        return 1

    def numbers(self, module: nn.Module) -> set[str]:
        """Names of all numbers that a call of one of :attr:`functions` must be given to be this layer."""
        return {name for name, _ in module.named_parameters(recurse=False)}

    def can_absorb(self, module: Any, owners: Mapping[Tensor, int]) -> bool:
        """Whether the layer has numbers to rescale, used by no other layer.

        Args:
            module: The layer.
            owners: How many modules hold each parameter.
        """
        return all(owners[parameter] == 1 for parameter in module.parameters(recurse=False))

    def is_odd(self, module: Any) -> bool:
        """Whether f(-x) = -f(x), so that inputs that cancel still do behind it (:mod:`lightning_tspike.graph.ties`)."""
        return False

    def absorb(self, module: Any, g_in: Tensor, g_out: Tensor) -> None:
        """Rescale the layer's numbers, in place.

        Args:
            module: The layer, in eval mode.
            g_in: Gauges of the input channels, [C] or [1], float64.
            g_out: Gauges of the output channels, likewise.
        """
        raise NotImplementedError

    def scale(self, walk: ScaleWalk, module: Any, node: fx.Node, x: fx.Node) -> Tensor:
        """Ids of the output's scales in training, by channel.

        Args:
            walk: Has the ids of the input, and unites or pins them.
            module: The layer.
            node: The call.
            x: What it reads.
        """
        raise NotImplementedError


class NeuronRule(LayerRule):
    """Spiking neurons: the membrane potential is stored in the input's gauge."""

    covers = "neuron"
    gauges = "threshold' = threshold / g_in; it emits a * s, so that g_out = a leaves the bare s in {-1, 0, +1}"
    spikes = "emits them"
    modules = (SpikingNeuron,)

    def can_absorb(self, module: Any, owners: Mapping[Tensor, int]) -> bool:
        return True  # shared amplitudes are one gauge

    def absorb(self, module: Any, g_in: Tensor, g_out: Tensor) -> None:
        threshold = module.firing_threshold / g_in
        if module.raw_amplitude is not None:
            rest = _simplest(module.amplitude / g_out)
            module.raw_amplitude = None if bool((rest == 1).all()) else nn.Parameter(torch.atleast_1d(rest))
        threshold = _simplest(threshold / module.amplitude if module.is_coupled else threshold)
        is_learned = isinstance(module.threshold, nn.Parameter)
        module.threshold = nn.Parameter(torch.atleast_1d(threshold)) if is_learned else threshold

    def scale(self, walk: ScaleWalk, module: Any, node: fx.Node, x: fx.Node) -> Tensor:
        walk.pin(walk.ids[x])
        return walk.emitted(module, walk.ids[x])


class WeightedRule(LayerRule):
    """Convolutions and linear layers."""

    covers = "convolution, linear"
    gauges = "W' = W * g_in / g_out, b' = b / g_out"
    modules = WEIGHTED
    functions = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})

    def channel_axis(self, module: nn.Module) -> int:
        return -1 if isinstance(module, nn.Linear) else 1

    def can_absorb(self, module: Any, owners: Mapping[Tensor, int]) -> bool:
        # a parametrized weight is computed, not stored
        return super().can_absorb(module, owners) and "weight" in self.numbers(module)

    def is_odd(self, module: Any) -> bool:
        return module.bias is None

    def absorb(self, module: Any, g_in: Tensor, g_out: Tensor) -> None:
        weight = module.weight  # [C_out, C_in / groups, ...]
        weight *= for_weights(module, g_in) / g_out.view(-1, *[1] * (weight.ndim - 1))
        if module.bias is not None:
            module.bias /= g_out

    def scale(self, walk: ScaleWalk, module: Any, node: fx.Node, x: fx.Node) -> Tensor:
        axis = self.channel_axis(module)
        groups = getattr(module, "groups", 1)
        channels = walk.along(walk.ids[x], axis).expand(x.meta["value"].shape[axis])
        grouped = channels.view(groups, -1)
        walk.unite(grouped, grouped[:, :1])
        outputs = grouped[:, 0].repeat_interleave(node.meta["value"].shape[axis] // groups)
        # a norm divides out a bias right before it together with the scale
        if module.bias is not None and not all(walk.is_norm(user) for user in node.users):
            walk.pin(outputs)
        return outputs


def for_weights(module: Any, g_in: Tensor) -> Tensor:
    """Gauges of a layer's input channels, [C] or one number, as they broadcast with its weights [C_out, ...]."""
    weight = module.weight
    groups = getattr(module, "groups", 1) if g_in.numel() > 1 else 1
    # each output channel reads the input channels of its group
    each = g_in.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)  # [C_out, C_in / groups or 1]
    return each.view(*each.shape, *[1] * (weight.ndim - 2))


class NormRule(LayerRule):
    """Batch norms: in eval mode their statistics are numbers like others, in training they divide a scale out."""

    covers = "batch norm (eval)"
    gauges = "mean' = mean / g_in, weight' = weight * g_in / g_out, bias' = bias / g_out; the variance stays"
    modules = NORMS
    functions = frozenset({F.batch_norm, torch.batch_norm})

    def numbers(self, module: nn.Module) -> set[str]:
        return super().numbers(module) | {"running_mean", "running_var"}

    def can_absorb(self, module: Any, owners: Mapping[Tensor, int]) -> bool:
        has_statistics = module.running_mean is not None and module.running_var is not None
        has_weight = any(name == "weight" for name, _ in module.named_parameters(recurse=False))
        return super().can_absorb(module, owners) and has_statistics and has_weight == bool(module.affine)

    def absorb(self, module: Any, g_in: Tensor, g_out: Tensor) -> None:
        module.running_mean /= g_in
        if module.affine:
            module.weight *= g_in / g_out
            module.bias /= g_out
        else:  # no weight: the variance takes the scale, 1 / sqrt(var' + eps) = g_in / g_out / sqrt(var + eps)
            module.running_var.add_(module.eps).mul_((g_out / g_in) ** 2).sub_(module.eps)

    def scale(self, walk: ScaleWalk, module: Any, node: fx.Node, x: fx.Node) -> Tensor:
        walk.along(walk.ids[x], 1)
        return torch.zeros(1, dtype=torch.int64)


class MixingNormRule(LayerRule):
    """Norms over channels: they divide a common scale out in training, and cannot take up gauges that differ."""

    covers = "layer norm, group norm, instance norm"
    gauges = "1 on both sides; in training a common scale is divided out"
    modules = OTHER_NORMS
    functions = frozenset({F.layer_norm, F.group_norm})

    def channel_axis(self, module: nn.Module) -> int:
        return -1 if isinstance(module, nn.LayerNorm) else 1

    def can_absorb(self, module: Any, owners: Mapping[Tensor, int]) -> bool:
        return False

    def scale(self, walk: ScaleWalk, module: Any, node: fx.Node, x: fx.Node) -> Tensor:
        walk.unite_all(walk.ids[x])
        return torch.zeros(1, dtype=torch.int64)


LAYER_RULES: list[LayerRule] = [NeuronRule(), WeightedRule(), NormRule(), MixingNormRule()]
"""Every kind of layer. A new one is a class and a place in this list."""


def layer_rule_of(module: nn.Module) -> LayerRule:
    """The rule of a layer that :func:`layer_of` has found."""
    return next(rule for rule in LAYER_RULES if isinstance(module, rule.modules))


def absorbs(module: nn.Module, owners: Mapping[Tensor, int]) -> bool:
    """Whether a module is a layer that can take up gauges, see :meth:`LayerRule.can_absorb`."""
    return any(isinstance(module, rule.modules) and rule.can_absorb(module, owners) for rule in LAYER_RULES)


def layer_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, fx.Node] | None:
    """The layer that a node calls and the node it reads, if it is one with numbers of its own.

    A functional call with exactly the numbers of one such module is a call of that module: timm's layers that do more
    than their base class (``Conv2dSame``, ``BatchNormAct2d``) look like this in a trace.
    """
    if node.op == "call_module":
        module = modules[str(node.target)]
        is_layer = any(isinstance(module, rule.modules) for rule in LAYER_RULES)
        has_channels = is_layer and ops.has_channels_second(node, type(module).__name__)
        return (module, ops.input_of(node)) if has_channels else None
    if node.op != "call_function":
        return None
    rule = next((rule for rule in LAYER_RULES if node.target in rule.functions), None)
    if rule is None or not ops.has_channels_second(node, getattr(node.target, "__name__", "")):
        return None
    attributes = [str(n.target).rpartition(".") for n in node.all_input_nodes if n.op == "get_attr"]
    owners = {owner for owner, _, _ in attributes}
    if len(owners) != 1:
        return None
    (owner,) = owners
    module = modules[owner]
    is_call = isinstance(module, rule.modules) and {name for _, _, name in attributes} == rule.numbers(module)
    return (module, ops.input_of(node)) if is_call else None


def exposed(graph: fx.Graph, model: nn.Module) -> set[nn.Module]:
    """Modules whose numbers something else also reads, so that they must not change."""
    modules = dict(model.named_modules(remove_duplicate=False))
    read_elsewhere = (
        str(node.target).rpartition(".")[0]
        for node in graph.nodes
        if node.op == "get_attr" and any(layer_of(user, modules) is None for user in node.users)
    )
    return {modules[owner] for owner in read_elsewhere}


def _simplest(numbers: Tensor) -> Tensor:
    """One number where all channels have the same."""
    first = numbers.flatten()[0]
    return first if numbers.numel() == 1 or bool((numbers == first).all()) else numbers
