"""Look at what passes through layers while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["Look", "watching"]

Look = Callable[[str, Any, Tensor, Tensor], None]
"""Gets a layer's name, the layer, its input and its output."""


@contextmanager
def watching(modules: Mapping[str, nn.Module], look: Look) -> Iterator[None]:
    """Show every call of these modules to ``look`` while the block lasts; it runs where gradients are recorded."""
    with ExitStack() as hooks:
        for name, module in modules.items():
            hook = module.register_forward_hook(lambda m, args, output, name=name: look(name, m, args[0], output))
            hooks.callback(hook.remove)
        yield
