"""Blocks of layers that keep their inputs alone and are computed again in the backward pass."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .._calls import Call, current, running
from ..neurons import SpikingNeuron
from .packed import CHANGED, KnownSpikes, is_checkpointing

__all__ = ["install", "recompute", "remove"]


def install(model: nn.Module) -> None:
    """Let the blocks of ``model`` be computed again in calls that ask for it (``Call.recompute``)."""
    remove(model)
    for block in dict.fromkeys(_blocks(model)):
        block.forward = _Forward(block, vars(block).get("forward"))


def remove(model: nn.Module) -> None:
    """Give the blocks of ``model`` their own ``forward`` back."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, _Forward):
            del module.forward
            if forward.own is not None:
                module.forward = forward.own


class _Forward:
    """The ``forward`` of a block while the network's memory is ``"lean"``.

    It stays in place from one call to the next and holds nothing of any of them: each asks the call of its own thread
    whether the block is to be computed again, so threads need not wait for one another. A module around the block would
    change its name and the keys of its weights, and hooks cannot decide how a block runs; hence ``forward``.

    Args:
        block: The block, not kept alive (it keeps this).
        own: A ``forward`` that had been set on it; None for that of its class.
    """

    def __init__(self, block: nn.Module, own: Callable[..., Any] | None) -> None:
        self._block = weakref.ref(block)
        self.own = own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block: Any = self._block()
        forward = self.own or partial(type(block).forward, block)
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        call = current()
        # not within another block or checkpoint, nor where no gradients are recorded
        if call is None or call.recompute is None or not torch.is_grad_enabled() or is_checkpointing():
            return forward(*args, **kwargs)
        if not _is_list(block):
            return call.recompute(block, forward, *args, **kwargs)
        first, *others = _runs(block)
        x = call.recompute(first, first.forward, *args, **kwargs)
        for part in others:
            x = call.recompute(part, part.forward, x)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        return _Forward(copy.deepcopy(self._block(), memo), copy.deepcopy(self.own, memo))  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Forward, (self._block(), self.own)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks inside a module.

    A block is the largest module whose neurons are in no list of layers; a list of layers with neurons among them (as
    VGG is) has a part for each of its neurons.
    """
    for child in module.children():
        if isinstance(child, SpikingNeuron) or not _has_neurons(child):
            continue
        if _is_list(child):
            yield child
        elif any(_is_chain(m) for m in child.modules()):
            yield from _blocks(child)
        else:
            yield child


def _is_list(module: nn.Module) -> bool:
    """Whether a module is a list of layers with neurons among them."""
    is_plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return is_plain and any(isinstance(m, SpikingNeuron) for m in module.children())


def _runs(layers: nn.Module) -> Iterator[nn.Module]:
    run: list[nn.Module] = []
    for layer in layers.children():
        run.append(layer)
        if _has_neurons(layer):
            yield nn.Sequential(*run)
            run = []
    if run:
        yield nn.Sequential(*run)


def _is_chain(module: nn.Module) -> bool:
    is_list = isinstance(module, (nn.Sequential, nn.ModuleList))
    return is_list and sum(_has_neurons(child) for child in module.children()) > 1


def _has_neurons(module: nn.Module) -> bool:
    return any(isinstance(m, SpikingNeuron) for m in module.modules())


def recompute(known: KnownSpikes, block: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """``forward(*args, **kwargs)`` of a block, which keeps its input alone: packed, where that is ``known`` spikes."""
    now, call = _State(block), current()

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _again(block, now, call)

    def on_copies(*args: Any, **kwargs: Any) -> Any:
        return forward(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args), **kwargs)

    writes = any(getattr(module, "inplace", False) for module in block.modules())
    with known.packing(args[0] if args else None):
        return checkpoint(on_copies if writes else forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


class _State:
    """What a block must still have when it runs again: the same weights and the same modes."""

    def __init__(self, block: nn.Module) -> None:
        self.weights = [(p, p._version) for p in block.parameters()]
        self.modes = [module.training for module in block.modules()]

    def check(self, block: nn.Module) -> None:
        weights = list(block.parameters())
        if [id(p) for p in weights] != [id(p) for p, _ in self.weights]:
            raise RuntimeError(
                "memory='lean' runs blocks again in the backward pass, but their parameters are other ones now "
                "(torch.func.functional_call?): set network.memory to 'packed'"
            )
        if [p._version for p in weights] != [version for _, version in self.weights]:
            raise RuntimeError(CHANGED)
        if [module.training for module in block.modules()] != self.modes:
            raise RuntimeError(
                "memory='lean' runs blocks again in the backward pass, but train() or eval() was called in between: "
                "call backward() first, or set network.memory to 'packed'"
            )


@contextmanager
def _again(block: nn.Module, before: _State, call: Call | None) -> Iterator[None]:
    """Run a block again within, as part of ``call``; its buffers stay as they are."""
    before.check(block)
    with running(call), _CopiesOf(block):
        yield


class _CopiesOf(TorchFunctionMode):
    """Torch functions get copies of a block's buffers: running statistics have moved in the forward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.copies = {id(buffer): buffer.clone() for module in block.modules() if module.training
                       for buffer in module.buffers(recurse=False)}  # fmt: skip

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        copies = self.copies
        args = tuple(copies.get(id(arg), arg) for arg in args)
        return func(*args, **{name: copies.get(id(value), value) for name, value in (kwargs or {}).items()})
