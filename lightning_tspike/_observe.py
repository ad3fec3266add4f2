"""Observe what passes through layers while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

from torch import Tensor, nn

from ._calls import in_backward

__all__ = ["Observer", "is_observed", "observed", "observing", "unseen"]

# Of the whole process and changed under a lock: a network may run in another thread than the one that observes it. A
# number and not a search of the network's hooks: torch.compile guards on it, so even a network that is compiled as a
# whole, and looks at no hook that is added later, is traced again while somebody observes.
_observers = 0
_lock = Lock()
_unseen: ContextVar[bool] = ContextVar("unseen", default=False)

Observer = Callable[[str, Any, Tensor, Tensor], None]
"""Gets a layer's name, the layer, its input and its output."""


@contextmanager
def observing(modules: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Show every call of these modules to ``observer`` while the block lasts; it runs where gradients are recorded.

    What a backward pass runs again, because it was not kept, has been shown before.
    """

    def hook(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        if not in_backward() and not _unseen.get():
            observer(name, module, args[0], output)

    with observed(), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield


@contextmanager
def unseen() -> Iterator[None]:
    """Run layers within that no observer is shown, such as those that are traced on an example while a batch runs."""
    token = _unseen.set(True)
    try:
        yield
    finally:
        _unseen.reset(token)


@contextmanager
def observed() -> Iterator[None]:
    """Say that layers have hooks that must be called: a compiled network knows nothing of them and runs as it is."""
    global _observers
    with _lock:
        _observers += 1
    try:
        yield
    finally:
        with _lock:
            _observers -= 1


def is_observed() -> bool:
    """Whether layers have hooks that must be called."""
    return _observers > 0
