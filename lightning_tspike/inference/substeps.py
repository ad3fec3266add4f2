"""A network of several levels unfolded into sub-steps of ternary spikes: the form that needs nothing but -1, 0 and +1.

Each of T time steps becomes D sub-steps, by thermometer coding: a spike s in {-D..D} is sent as sign(s) in the first
|s| of them, so that their sum is s. This is how I-LIF neurons run on spiking hardware (SpikeYOLO, ECCV 2024;
Spike-driven Transformer V3), here with a sign. What follows neurons in the graph runs on each sub-step by itself:

============== ======================================================================================================
what is linear convolutions, linear layers, norms, additions, average pools: their biases are counted once, in the first
               sub-step
max pools      on spikes: each sub-step's spike is a monotone function of s, so the largest of a window is the same one
neurons        add up the currents of the D sub-steps and integrate once
all else       max pools on currents, for instance, runs once a time step, on the sum of the sub-steps
============== ======================================================================================================

So logits and spikes are the same: in exact arithmetic to the last bit.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph import operations as ops
from ..graph.layer_rules import layer_of, layer_rule_of
from ..graph.rules import Join, Local, Move, Pointwise, Product, Reduce, rule_of
from ..graph.tracing import TraceError, copy_of
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from .rebuilding import Rebuilding

__all__ = ["SubstepNetwork", "substeps"]

_TOLERANCE = 1e-9
_KEEP_SIGNS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LINEAR_METHODS = ("neg", "clone", "contiguous", "detach", "float", "double", "to", "type", "type_as")


class SubstepNetwork(SpikingNetwork):
    """A spiking network in sub-steps, made by :func:`substeps`; called as the network that it was made from.

    It cannot be traced, so it runs neither a step at a time nor in other programs: the network it was made from does.

    Attributes:
        levels: Number D of sub-steps of a time step.
        once: Convolutions and linear layers that run once a time step, as what they read are no sums of sub-steps: the
            first one, which reads the image, and those behind operations that are not linear.
    """

    def __init__(self, model: nn.Module, network: SpikingNetwork, levels: int, once: tuple[str, ...]) -> None:
        encoders = [f"{name}.neuron" for name in network.encoders]
        super().__init__(model, network.timesteps, input_size=network.input_size, encoders=encoders)
        self.pretrained_cfg = dict(network.pretrained_cfg)
        self.levels, self.once = levels, once

    def trace(self, x: Tensor) -> fx.Graph:
        raise TraceError("a network in sub-steps cannot be traced: use the network that it was made from")


def substeps(network: SpikingNetwork) -> SubstepNetwork:
    """Unfold a network whose neurons have several levels into sub-steps in which they send -1, 0 or +1.

    Args:
        network: Best a folded one, whose layers then add up bare spikes. It is left as it is.

    Returns:
        The network in D sub-steps a time step, a copy in eval mode, where D is the largest number of levels.

    Raises:
        lightning_tspike.graph.TraceError: The network cannot be traced, or its code counts images or does otherwise not
            give the same in sub-steps, which is looked at in float64 on two images and two sequences of noise.
    """
    made = _unfold(network)
    generator = torch.Generator().manual_seed(0)
    size = 2, network.timesteps, *network.input_size
    exact, frames = copy_of(network).eval().double().cpu(), torch.randn(size, generator=generator, dtype=torch.float64)
    unfolded = copy.deepcopy(made).double().cpu()
    for x in (frames[:, 0], frames):
        with torch.no_grad():
            want: Any = exact(x, per_step=True)
            try:
                got: Any = unfolded(x, per_step=True)
            except Exception as error:  # whatever torch's operations raise
                raise TraceError(f"the network's code does not run in sub-steps: {error}") from error
            if not (isinstance(want, Tensor) and isinstance(got, Tensor)):
                raise TraceError(f"sub-steps are for networks that give logits, not a {type(want).__name__}")
        if got.shape != want.shape or (got - want).abs().max() > _TOLERANCE * want.abs().max():
            raise TraceError("in sub-steps the network does not give the same: some operation is not followed rightly")
    return made


def _unfold(network: SpikingNetwork) -> SubstepNetwork:
    copied = copy_of(network).eval()
    levels = max((neuron.levels for neuron in copied.neurons().values()), default=1)
    weight = next(copied.parameters(), torch.empty(0))
    graph = copied.trace(torch.zeros(1, *copied.input_size, device=weight.device, dtype=weight.dtype))
    walk = _Unfolding(copied.model, levels)
    return SubstepNetwork(walk.run(graph), copied, levels, tuple(walk.once)).eval()


class _SubstepNeuron(nn.Module):
    """Neurons that send each spike in D sub-steps, [D*T*B, ...]: sub-steps outermost.

    Args:
        neuron: The neurons.
        levels: D.
        adds: Whether the currents are those of sub-steps, [D*T*B, ...], to be added up; else [T*B, ...] or [B, ...].
    """

    def __init__(self, neuron: SpikingNeuron, levels: int, *, adds: bool) -> None:
        super().__init__()
        self.neuron, self.levels, self.adds = neuron, levels, adds

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neuron(_added(x, self.levels) if self.adds else x)
        size = spikes.abs()
        amplitude = self.neuron.amplitude
        if isinstance(amplitude, Tensor):  # it is kept: the level is what it multiplies
            amplitude = amplitude.reshape(-1, *[1] * (spikes.ndim - 2)) if amplitude.ndim else amplitude
            size = (size / amplitude).round()
        return torch.cat([torch.where(size >= j, spikes.sign() * amplitude, 0) for j in range(1, self.levels + 1)])


class _BiasOnce(nn.Module):
    """An affine layer on sub-steps [D*T*B, ...], whose bias is added in the first of them alone.

    Args:
        layer: Without its bias.
        bias: [C].
        levels: D.
        axis: The dimension of channels.
    """

    bias: Tensor

    def __init__(self, layer: nn.Module, bias: Tensor, levels: int, axis: int) -> None:
        super().__init__()
        self.layer, self.levels, self.axis = layer, levels, axis
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        bias = self.bias if self.axis == -1 else self.bias.view(-1, *[1] * (y.ndim - 2))
        first, *others = y.chunk(self.levels)
        return torch.cat([first + bias, *others])


class _Added(nn.Module):
    """The sum of sub-steps: [D*T*B, ...] -> [T*B, ...]."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return _added(x, self.levels)


def _added(x: Tensor, levels: int) -> Tensor:
    return x.unflatten(0, (levels, -1)).sum(0)


class _Unfolding(Rebuilding):
    """A walk through a graph that builds the one in sub-steps.

    Attributes:
        once: Names of the layers with weights that run once a time step.
    """

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__(model)
        self.levels = levels
        self.now: dict[fx.Node, fx.Node] = {}  # what stands for a node in the new graph
        self.sums: dict[fx.Node, fx.Node] = {}  # the same, where sub-steps were added up
        self.split: dict[fx.Node, bool] = {}  # nodes that are in sub-steps, and whether they are coded spikes
        self.once: list[str] = []

    def run(self, graph: fx.Graph) -> fx.GraphModule:
        for node in graph.nodes:
            if node.op == "output":
                self.graph.output(fx.node.map_arg(node.args[0], self._whole))
                continue
            self._unfold(node)
        return fx.GraphModule(self.parts, self.graph)

    def _unfold(self, node: fx.Node) -> None:
        found = layer_of(node, self.modules) if not node.meta["hooked"] and node.op != "get_attr" else None
        if found is not None and isinstance(found[0], SpikingNeuron):
            neuron, x = found[0], found[1]
            new = _SubstepNeuron(neuron, self.levels, adds=x in self.split)
            self.now[node] = self.call(str(node.target), new, [self.now[x]])
            self.split[node] = True
            return
        reads = [n for n in node.all_input_nodes if n in self.split]
        if found is not None and reads and node.op == "call_module" and self._affine(node, *found):
            self.split[node] = False
            return
        if found is not None and isinstance(found[0], ops.WEIGHTED):
            self.once.append(str(node.target) if node.op == "call_module" else node.name)
        coded = self._stays_split(node, reads) if reads and found is None else None
        if coded is None:
            self.now[node] = self.keep(node, self._whole)
            return
        self.now[node] = self.keep(node, self.now.__getitem__)
        self.split[node] = coded

    def _affine(self, node: fx.Node, layer: Any, x: fx.Node) -> bool:
        """Run a layer on sub-steps, where it is affine; whether it is."""
        if isinstance(layer, ops.NORMS) and layer.running_mean is not None and layer.running_var is not None:
            mean, bias = layer.running_mean, layer.bias
            shift = -mean * (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
            shift = shift if bias is None else shift + bias
            layer = copy.deepcopy(layer)
            layer.running_mean.zero_()
            if layer.bias is not None:
                layer.bias.data.zero_()
        elif isinstance(layer, ops.WEIGHTED) and layer.bias is not None:
            shift, layer = layer.bias, copy.deepcopy(layer)
            layer.bias = None
        elif isinstance(layer, ops.WEIGHTED):
            self.now[node] = self.call(str(node.target), layer, [self.now[x]])
            return True
        else:
            return False
        axis = layer_rule_of(layer).channel_axis(layer)
        new = _BiasOnce(layer, shift.detach().clone(), self.levels, axis)
        self.now[node] = self.call(str(node.target), new, [self.now[x]])
        return True

    def _stays_split(self, node: fx.Node, reads: list[fx.Node]) -> bool | None:
        """Whether an operation gives coded spikes or other sub-steps (False); None where it must run on their sum."""
        is_all = len(reads) == len([n for n in node.all_input_nodes if n.meta.get("value") is not None])
        is_coded = all(self.split[n] for n in reads)
        if node.meta["hooked"] or not is_all:
            return None
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        is_extremum = any(word in name.lower() for word in ("max", "amin"))
        match rule_of(node, self.modules, lambda _: False):
            case Move():
                return is_coded
            case Pointwise():
                is_linear = isinstance(module, _KEEP_SIGNS) or name in _LINEAR_METHODS or Join.starts_a_sum(node)
                return is_coded if is_coded or is_linear or node.target is F.dropout else None
            case Local() | Reduce():
                if is_extremum:
                    return True if is_coded else None
                return is_coded and "pad" in name.lower()
            case Join() | Product():
                return False
        return None

    def _whole(self, node: fx.Node) -> fx.Node:
        """What stands for a node, once a time step."""
        if node not in self.split:
            return self.now[node]
        if node not in self.sums:
            self.sums[node] = self.call(f"{node.name}_sum", _Added(self.levels), [self.now[node]])
        return self.sums[node]
