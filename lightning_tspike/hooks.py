"""Look at what passes through layers while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

__all__ = ["Look", "is_watched", "unwatched", "watched", "watching"]

_is_unwatched: ContextVar[bool] = ContextVar("is_unwatched", default=False)
_watchers = 0  # of the whole process: a network may run in another thread than the one that watches

Look = Callable[[str, Any, Tensor, Tensor], None]
"""Gets a layer's name, the layer, its input and its output."""


@contextmanager
def watching(modules: Mapping[str, nn.Module], look: Look) -> Iterator[None]:
    """Show every call of these modules to ``look`` while the block lasts; it runs where gradients are recorded."""

    def hook(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        if not _is_unwatched.get():
            look(name, module, args[0], output)

    with watched(), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield


@contextmanager
def watched() -> Iterator[None]:
    """Say that layers have hooks that must be called: a compiled network knows nothing of them and runs as it is."""
    global _watchers
    _watchers += 1
    try:
        yield
    finally:
        _watchers -= 1


def is_watched() -> bool:
    """Whether layers have hooks that must be called."""
    return _watchers > 0


@contextmanager
def unwatched() -> Iterator[None]:
    """Run layers that have been looked at already, to compute again what was not kept of them."""
    token = _is_unwatched.set(True)
    try:
        yield
    finally:
        _is_unwatched.reset(token)
