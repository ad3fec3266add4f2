"""A new graph, built while an old one is walked: nodes that stay, and calls of modules in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

__all__ = ["Rebuilding"]


class Rebuilding:
    """The base of walks through a graph that build another one.

    Args:
        model: What the old graph was traced from.

    Attributes:
        modules: The model's, by name.
        graph: The new graph.
        parts: Modules and tensors that the new graph uses, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        self.graph = fx.Graph()
        self.parts: dict[str, Any] = {}

    def keep(self, node: fx.Node, arguments: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The same operation in the new graph, on what stands for its arguments."""
        name = str(node.target)
        if node.op == "call_module":
            self.parts[name] = self.modules[name]
        elif node.op == "get_attr":
            owner, _, attribute = name.rpartition(".")
            self.parts[name] = getattr(self.modules[owner], attribute)
        return self.graph.node_copy(node, arguments)

    def call(self, name: str, module: nn.Module, arguments: Sequence[fx.Node]) -> fx.Node:
        """A call of another module, whose name is that of the old one, with a number where that one is called again."""
        free, count = name, 1
        while free in self.parts and self.parts[free] is not module:
            count += 1
            free = f"{name}_{count}"
        self.parts[free] = module
        return self.graph.create_node("call_module", free, tuple(arguments), {})
