"""A network one time step at a time: a pure function of a frame and of what its neurons have left of the past."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, fx, nn

from .._batches import logits_of
from .._calls import Call
from ..graph.tracing import TraceError
from .features import are_maps

__all__ = ["State", "StepNetwork", "Traceable", "check_batch_size", "check_eval"]

State: TypeAlias = dict[str, Tensor]
"""The memories of all neurons, by the place where they are called: a neuron's name in the model; where the model calls
one a second and a third time, ``"name:2"``, ``"name:3"``."""


class Traceable(Protocol):
    """What must be known of a :class:`lightning_tspike.SpikingNetwork` here."""

    model: nn.Module
    input_size: tuple[int, ...]
    training: bool

    def call(self, x: Tensor, timesteps: int | None = None) -> Call:
        """The call for an input; raises where it is not for the network."""

    def trace(self, x: Tensor) -> fx.Graph:
        """The graph of ``model`` for an input, whose nodes have their values as ``meta["value"]``."""


_BATCHES = 2, 3
"""How many frames a network is traced on: numbers in its code that differ in this proportion count them."""


class StepNetwork(nn.Module):
    """One time step of a network as a pure function, ``(frame, state) -> (logits, state)``.

    Frame after frame from :meth:`initial_state`, it gives what ``network(frames, per_step=True)`` gives, and its
    neurons fire the same. Nothing is kept inside: the state may be copied, stored, or be that of another stream, and
    torch.compile and torch.export take the module as it is. A still image is shown by giving it at every step; layers
    before the first neurons then run each time.

    Args:
        network: In eval mode. Its layers are shared, not copied: new weights of one are those of the other.
        example: An image or frames for the network, shape [B, C, H, W] or [B, T, C, H, W] (vectors likewise). Only its
            size matters: frames have to be of that.

    Raises:
        TraceError: The network cannot be traced, or counts on the number of images in a batch.
        ValueError: The network is in train mode, the example is not for it, or a kind of neuron has no ``step``.

    Attributes:
        frame_shape: Of one frame, (C, H, W) or (F,).
        sites: Shape of one frame's memory by place, in the order in which the neurons run: (1, ...), or (n, ...) where
            the model makes a frame into n rows of a batch.
        layers: The network's layers and the code of one step.
    """

    def __init__(self, network: Traceable, example: Tensor) -> None:
        super().__init__()
        check_eval(network)
        network.call(example)  # raises where it is not for this network
        self.frame_shape = tuple(example.shape[-len(network.input_size) :])
        frame = torch.zeros(1, *self.frame_shape).to(_number_of(network.model))
        self.layers, self.sites = _one_step(network, frame)

    def initial_state(self, batch_size: int = 1) -> State:
        """The state before the first frame: zeros, on the network's device.

        Args:
            batch_size: Number of streams B that run side by side.

        Raises:
            ValueError: ``batch_size`` is no whole number of at least 1.
        """
        check_batch_size(batch_size)
        number = _number_of(self)
        dtype = torch.promote_types(number.dtype, torch.float32)
        return {
            site: torch.zeros(rows * batch_size, *shape, dtype=dtype, device=number.device)
            for site, (rows, *shape) in self.sites.items()
        }

    def forward(self, frame: Tensor, state: State) -> tuple[Any, State]:
        """Run one time step.

        Args:
            frame: The frame of each stream, shape [B, C, H, W] or [B, F].
            state: What the step before returned, or :meth:`initial_state`. It is not changed.

        Returns:
            Logits of this time step [B, K] (feature maps where the network gives these) and the state after it.

        Raises:
            ValueError: The frame is of another size or number of channels than the module was made for, or the state is
                that of another network, size of frames or number of streams.
        """
        self._check(frame, state)
        output, memories = self.layers(frame, *[state[site] for site in self.sites])
        output = output if are_maps(output) else logits_of(output)
        return output, dict(zip(self.sites, memories, strict=True))

    def _check(self, frame: Tensor, state: State) -> None:
        if tuple(frame.shape[1:]) != self.frame_shape:
            raise ValueError(
                f"this step was made for frames {_named('B', self.frame_shape)}, got shape {tuple(frame.shape)}; for "
                "frames of another size, make another one with an example of them"
            )
        if state.keys() != self.sites.keys():
            lacks, besides = self.sites.keys() - state.keys(), state.keys() - self.sites.keys()
            missing, unknown = (", ".join(sorted(names)[:3]) or "none" for names in (lacks, besides))
            raise ValueError(
                f"the state is that of another network: memories that it lacks: {missing}; that nothing here reads: "
                f"{unknown}; initial_state(batch_size) gives one to start from"
            )
        for site, (rows, *shape) in self.sites.items():
            found = state[site].shape
            if tuple(found[1:]) != tuple(shape):
                raise ValueError(
                    f"the state is that of another network or of frames of another size: the memory of {site!r} has "
                    f"shape {tuple(found)}, expected {_named(f'{rows}*B' if rows > 1 else 'B', shape)}"
                )
            if found[0] != rows * frame.shape[0]:
                raise ValueError(
                    f"the state is of {found[0] // rows} streams (the memory of {site!r} has shape {tuple(found)}), "
                    f"but {frame.shape[0]} frames were given (shape {tuple(frame.shape)}): each stream needs one"
                )


def check_eval(network: Traceable) -> None:
    """Raise ValueError where a network is in train mode."""
    if network.training:
        raise ValueError("the network is in train mode, where a frame's logits depend on its batch: call .eval()")


def check_batch_size(batch_size: object) -> None:
    """Raise ValueError where a number of streams is no whole number of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")


def _number_of(module: nn.Module) -> Tensor:
    """One of a module's numbers, for its device and dtype."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def _named(batch: str, shape: tuple[int, ...] | list[int]) -> str:
    return f"[{', '.join([batch, *map(str, shape)])}]"


def _one_step(network: Traceable, frame: Tensor) -> tuple[fx.GraphModule, dict[str, tuple[int, ...]]]:
    """The network's code for one time step, ``(frame, *memories) -> (output, memories)``, and the memories' sites."""
    model, traced = network.model, _trace_for_any_batch(network, frame)
    graph = fx.Graph()
    now: dict[fx.Node, Any] = {}  # what stands in the step for the network's nodes
    first = next(iter(traced))
    now[first] = graph.placeholder("frame")
    memories = {
        node: graph.placeholder(f"memory{i}")
        for i, node in enumerate(node for node in traced if node.op == "call_module" and _fires(model, node))
    }
    batch = graph.call_method("size", (now[first], 0))
    parts: dict[str, Any] = {}

    def of_step(argument: Any) -> Any:
        if isinstance(argument, _Rows):
            return graph.call_function(operator.mul, (batch, argument.each))
        return now[argument] if isinstance(argument, fx.Node) else argument

    places = list(memories)
    for node, arguments in traced.items():
        target: Any = node.target
        args, kwargs = fx.node.map_aggregate(arguments, of_step)
        if node.op == "placeholder":
            if node is not first:  # an argument that has a default
                now[node] = args[0] if args else None
        elif node.op == "output":
            graph.output((args[0], tuple(memories.values())))
        elif node in memories:
            parts[target] = _Step(model.get_submodule(target))
            spikes_and_memory = graph.call_module(target, (memories[node], *args), kwargs)
            now[node] = graph.call_function(operator.getitem, (spikes_and_memory, 0))
            memories[node] = graph.call_function(operator.getitem, (spikes_and_memory, 1))
        else:
            if node.op in ("call_module", "get_attr"):
                parts[target] = _part(model, node)
            now[node] = graph.create_node(node.op, target, args, kwargs)
    if not batch.users:
        graph.erase_node(batch)
    return fx.GraphModule(parts, graph, "OneStep"), _sites(places)


class _Step(nn.Module):
    """A layer of neurons as a layer of a graph, called with its memory."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, memory: Tensor, *currents: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
        neuron: Any = self.neuron
        return neuron.step(memory, *currents, **named)


def _fires(model: nn.Module, node: fx.Node) -> bool:
    """Whether a call of a layer is one of neurons: their layers have a ``step``.

    Raises:
        ValueError: It is a kind of neurons whose ``forward`` differs from that of the kind that its ``step`` is from,
            or a hook changes what it gives.
    """
    layer = model.get_submodule(str(node.target))
    if not callable(getattr(layer, "step", None)):
        return False
    own = next(kind for kind in type(layer).__mro__ if {"forward", "step"} & vars(kind).keys())
    if "step" not in vars(own):
        raise ValueError(
            f"{own.__name__} ({node.target!r}) has a forward of its own but no step(memory, x) -> (spikes, memory) "
            "that does the same for one time step: write one beside it"
        )
    if node.meta.get("hooked"):
        raise ValueError(f"a hook changes what the neurons {node.target!r} give, which a single step would not run")
    return True


def _sites(places: list[fx.Node]) -> dict[str, tuple[int, ...]]:
    """Shape of one frame's memory by site, of the nodes that call neurons."""
    sites: dict[str, tuple[int, ...]] = {}
    calls: Counter[str] = Counter()
    for node in places:
        name = str(node.target)
        calls[name] += 1
        rows, *shape = node.meta["value"].shape
        sites[name if calls[name] == 1 else f"{name}:{calls[name]}"] = (rows // _BATCHES[0], *shape)
    return sites


def _part(model: nn.Module, node: fx.Node) -> Any:
    """The layer or tensor that a node names; a constant that the model's code makes is with the node alone."""
    try:
        return operator.attrgetter(str(node.target))(model)
    except AttributeError:
        return node.meta["value"]


@dataclass(frozen=True)
class _Rows:
    """Stands in a node's arguments for a number that was counted from the batch: so many for each frame."""

    each: int


def _trace_for_any_batch(network: Traceable, frame: Tensor) -> dict[fx.Node, Any]:
    """The nodes of a network that runs one time step, with their arguments: numbers that count frames as `_Rows`.

    Raises:
        TraceError: It cannot be traced, or its code depends on the number of frames in another way.
    """
    examples = (frame[:, None].expand(batch, 1, *frame.shape[1:]).contiguous() for batch in _BATCHES)
    nodes, others = (list(network.trace(example).nodes) for example in examples)
    traced = {}
    for node, other in zip_longest(nodes, others):
        try:
            if node is None or other is None or (node.op, node.target) != (other.op, other.target):
                raise _CountsFramesError
            if node.op == "get_attr":  # a constant that the model's code makes
                _for_any_batch(*(getattr(n.meta.get("value"), "shape", None) for n in (node, other)))
            traced[node] = _for_any_batch((node.args, node.kwargs), (other.args, other.kwargs))
        except _CountsFramesError:
            line = (node or other).meta.get("line", (node or other).name)
            raise TraceError(
                f"{type(network.model).__name__} cannot be run a time step at a time: its code depends on the number "
                f"of images in a batch, at {line}"
            ) from None
    return traced


class _CountsFramesError(Exception):
    """Code depends on the number of frames in another way than in proportion to it."""


def _for_any_batch(two: Any, three: Any) -> Any:
    """An argument of a node from what it is for two frames and for three."""
    if isinstance(two, fx.Node) and isinstance(three, fx.Node) and two.name == three.name:
        return two
    if type(two) is not type(three):
        raise _CountsFramesError
    if isinstance(two, (list, tuple)) and len(two) == len(three):
        parts = [_for_any_batch(*pair) for pair in zip(two, three, strict=True)]
        return parts if isinstance(two, list) else tuple(parts)
    if isinstance(two, dict) and two.keys() == three.keys():
        return {key: _for_any_batch(two[key], three[key]) for key in two}
    if isinstance(two, slice):
        return slice(*(_for_any_batch(getattr(two, end), getattr(three, end)) for end in ("start", "stop", "step")))
    if isinstance(two, int) and two != three and two % _BATCHES[0] == 0 and two // _BATCHES[0] * _BATCHES[1] == three:
        return _Rows(two // _BATCHES[0])
    if two is three or two == three:
        return two
    raise _CountsFramesError
