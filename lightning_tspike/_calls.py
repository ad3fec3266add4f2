"""What the layers of a network must know of the call that they run in: its time steps, and what its input is.

A network may be used by several threads at once, for images in one and for frames in another. So nothing of a call is
kept on modules: it is said to the thread that runs it. A backward pass may run layers again (activation checkpointing)
and in another thread; which call they belong to is then told by the calls whose graphs are still there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["Call", "Probe", "Spiking", "call_of", "current", "in_backward", "probing", "running"]


class Spiking(Protocol):
    """A layer of neurons, as far as it matters here."""

    is_encoder: bool
    """Whether it ends the static prefix."""


Probe: TypeAlias = Callable[[Any, Tensor], None]
"""Gets each neuron and its spikes wherever it runs, also when a backward pass runs it again: there it must compute the
same as before, for what the one keeps the other makes. Unlike a hook it may be compiled."""


class Call:
    """One call of a network.

    Attributes:
        timesteps: Number of time steps T.
        is_static: Whether the neurons that end the static prefix get [B, ...], the same at every time step.
        on_spikes: Gets each neuron and its spikes, where somebody wants to see them.
        probe: What :func:`probing` has said when the call began.
        recompute: Runs a block of layers so that it keeps its input alone and is computed again in the backward pass:
            ``recompute(block, forward, *args, **kwargs)``. None where layers keep what they need.
        neurons: Those that have run in it.
    """

    def __init__(self, timesteps: int, is_static: bool) -> None:
        self.timesteps = timesteps
        self.is_static = is_static
        self.on_spikes: Callable[[Any, Tensor], None] | None = None
        self.probe = _now.probe
        self.recompute: Callable[..., Any] | None = None
        self.neurons: set[Spiking] = set()

    def keep_while_differentiable(self, output: Any) -> None:
        """Let the call be found as long as there is the graph of ``output``: its layers may run again till then."""
        if torch.compiler.is_compiling():
            return
        for part in tree_leaves(output):
            if isinstance(part, Tensor) and part.grad_fn is not None:
                metadata: Any = part.grad_fn.metadata
                metadata[Call] = self
                with _lock:
                    _differentiable.add(self)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.call: Call | None = None
        self.probe: Probe | None = None


_now = _OfThread()
_lock = threading.Lock()
_differentiable: WeakSet[Call] = WeakSet()


@contextmanager
def running(call: Call | None) -> Iterator[None]:
    """Run layers within as part of ``call``."""
    before = _now.call
    _now.call = call
    try:
        yield
    finally:
        _now.call = before


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """Have the calls that begin within, in this thread, show their spikes to ``probe``."""
    before = _now.probe
    _now.probe = probe
    try:
        yield
    finally:
        _now.probe = before


def current() -> Call | None:
    """The call that this thread is in."""
    return _now.call


def in_backward() -> bool:
    """Whether this thread is in a backward pass: layers that run there have run before."""
    return torch._C._current_graph_task_id() != -1


def call_of(neuron: Spiking) -> Call | None:
    """The call that a layer of neurons runs in; None where it runs by itself.

    Raises:
        RuntimeError: Activation checkpointing inside of the network runs it again, and it cannot be told for which of
            several calls.
    """
    call = _now.call
    if torch.compiler.is_compiling():
        return call
    if call is not None:
        call.neurons.add(neuron)
        return call
    if not in_backward():
        return None
    with _lock:
        calls = [call for call in _differentiable if neuron in call.neurons]
    what_they_say = {(c.timesteps, c.is_static and neuron.is_encoder, c.probe is not None) for c in calls}
    if len(what_they_say) > 1:
        raise RuntimeError(
            "activation checkpointing inside of the network runs a layer of neurons again and cannot tell for which of "
            f"{len(calls)} calls (time steps, still images, spikes counted: {sorted(what_they_say)}): call backward() "
            "after each of them; or, instead of it, checkpoint the network as a whole or set network.memory = 'lean'"
        )
    return calls[0] if calls else None
