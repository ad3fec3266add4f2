"""Look at what passes through layers while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock
from typing import Any

from torch import Tensor, nn

from ._calls import in_backward

__all__ = ["Look", "is_watched", "watched", "watching"]

_watchers = 0  # of the whole process: a network may run in another thread than the one that watches
_lock = Lock()

Look = Callable[[str, Any, Tensor, Tensor], None]
"""Gets a layer's name, the layer, its input and its output."""


@contextmanager
def watching(modules: Mapping[str, nn.Module], look: Look) -> Iterator[None]:
    """Show every call of these modules to ``look`` while the block lasts; it runs where gradients are recorded.

    What a backward pass runs again, because it was not kept, has been shown before.
    """

    def hook(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        if not in_backward():
            look(name, module, args[0], output)

    with watched(), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield


@contextmanager
def watched() -> Iterator[None]:
    """Say that layers have hooks that must be called: a compiled network knows nothing of them and runs as it is."""
    global _watchers
    with _lock:
        _watchers += 1
    try:
        yield
    finally:
        with _lock:
            _watchers -= 1


def is_watched() -> bool:
    """Whether layers have hooks that must be called."""
    return _watchers > 0
