"""What an exported file computes, as torch.export's programs: all T time steps, or one with its state in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from .._batches import logits_of
from ..graph.tracing import copy_of
from ..network.spiking_network import SpikingNetwork
from ..network.stepping import StepNetwork
from ..neurons import SpikingNeuron
from .agreement import ExportError, first_line

__all__ = ["EXAMPLES", "WholeNetwork", "program_of"]

EXAMPLES = 2
"""Images in the example batch; torch.export takes a batch of 1 for one that is always 1."""

_aten: Any = torch.ops.aten
_CONVERSIONS = {_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout}
_CHECKS = {_aten._assert_tensor_metadata.default, _aten.promote_types.default}


class WholeNetwork(nn.Module):
    """All T time steps of a network, as plain operations that know nothing of this package.

    Maps images [B, C, H, W], or frames [B, T, C, H, W], to logits [B, K], the mean over time.

    Args:
        network: In eval mode; it is left as it is.
        frames: Whether it is fed frames.
    """

    def __init__(self, network: SpikingNetwork, *, frames: bool) -> None:
        super().__init__()
        self.timesteps = network.timesteps
        self.frames = frames
        self.repeats = not frames and not network.encoders
        self.model = copy_of(network.model)
        for name, neuron in network.neurons().items():
            is_static = not frames and name in network.encoders
            self.model.set_submodule(name, _AllSteps(neuron, self.timesteps, is_static=is_static))

    def forward(self, x: Tensor) -> Tensor:
        if self.frames:
            x = x.transpose(0, 1).flatten(0, 1)  # [B, T, C, H, W] -> [T*B, C, H, W]
        elif self.repeats:
            x = x.repeat(self.timesteps, *[1] * (x.ndim - 1))
        logits = logits_of(self.model(x))  # [T*B, K]
        return logits.unflatten(0, (self.timesteps, -1)).mean(0)


class _AllSteps(nn.Module):
    """A layer of neurons, its time steps one after the other: [T*B, ...] (static: [B, ...]) -> spikes [T*B, ...]."""

    def __init__(self, neuron: SpikingNeuron, timesteps: int, *, is_static: bool) -> None:
        super().__init__()
        self.neuron = copy_of(neuron)
        self.timesteps = timesteps
        self.is_static = is_static

    def forward(self, x: Tensor) -> Tensor:
        steps = x if self.is_static else x.unflatten(0, (self.timesteps, -1))
        spikes = []
        memory: Tensor | None = None
        for t in range(self.timesteps):
            current = steps if self.is_static else steps[t]
            fired, memory = self.neuron.step(torch.zeros_like(current) if memory is None else memory, current)
            spikes.append(fired)
        return torch.cat(spikes)


def program_of(module: WholeNetwork | StepNetwork, example: Tensor) -> ExportedProgram:
    """Export a network by torch.export, for batches of any size, without what only its makers can use.

    Args:
        module: All time steps, or one.
        example: Images or frames that it takes.

    Raises:
        ExportError: It has an operation that cannot be exported; the message names it.
    """
    batch = {0: Dim("batch")}
    arguments: tuple[Any, ...] = (torch.zeros(EXAMPLES, *example.shape[1:]),)
    dynamic: tuple[Any, ...] = (batch,)
    if isinstance(module, StepNetwork):
        state = module.initial_state(EXAMPLES)
        arguments = torch.zeros(EXAMPLES, *module.frame_shape), state
        dynamic = batch, {site: {0: rows * batch[0]} for site, (rows, *_) in module.sites.items()}
    module.requires_grad_(False)
    try:
        with torch.no_grad():
            program = torch.export.export(module, arguments, dynamic_shapes=dynamic)
    except Exception as error:  # whatever a model's own code does with stand-ins for tensors
        raise ExportError(f"torch.export cannot export the network: {first_line(error)}") from error
    _clean(program)
    return program


def _clean(program: ExportedProgram) -> None:
    """Drop operations that do nothing, checks of types, and traces of our own source."""
    graph = program.graph
    for node in list(graph.nodes):
        node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
        if node.op != "call_function":
            continue
        if (same := _equals(node)) is not None:
            node.replace_all_uses_with(same)
        if node.target in _CHECKS and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _equals(node: fx.Node) -> fx.Node | None:
    """What an operation does nothing to: a conversion to the type that is there, x + 0, x * 1."""
    args = node.args
    if node.target in _CONVERSIONS:
        x: Any = args[0]
        now, then = node.meta["val"], x.meta["val"]
        return x if (now.dtype, now.device) == (then.dtype, then.device) else None
    x, other = args[:2] if len(args) >= 2 else (None, None)
    if node.target is _aten.add.Tensor and isinstance(other, fx.Node) and other.target is _aten.zeros_like.default:
        return x
    if node.target is _aten.mul.Tensor and isinstance(other, fx.Node) and other.target is _aten.new_full.default:
        return x if other.args[1:3] == ([], 1.0) else None
    return None
