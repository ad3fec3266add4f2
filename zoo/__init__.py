"""The model zoo: folded networks by name, from the Hugging Face Hub, or from disk.

from lightning_tspike import zoo

zoo.list()                         # names of all entries
zoo.info("tspike-digits")          # one entry: architecture, recipe, measured accuracy
zoo.load("tspike-digits")          # its network, folded, in eval mode
zoo.load("ORG/NAME@REVISION")      # anybody's on the Hub
zoo.load("runs/digits/version_0/checkpoints/best.folded")
zoo.transforms("tspike-digits")    # from a PIL image to its input
zoo.publish("runs/digits/version_0/checkpoints/best.ckpt", "ORG/NAME")

What it offers is made in :mod:`lightning_tspike.store`. Looking up entries and recipes needs no torch; what does is
imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..store.catalog import ZooError, info, list_entries, recipe_path
from ..store.entries import ZooEntry

if TYPE_CHECKING:
    from ..store.loading import load, load_with_config, transforms
    from ..store.publish import publish, verify
    from ..store.source import open_source

__all__ = [
    "ZooEntry", "ZooError", "info", "list", "list_entries", "load", "load_with_config", "open_source", "publish",
    "recipe_path", "transforms", "verify",
]  # fmt: skip

_NEED_TORCH = {
    "load": "loading",
    "load_with_config": "loading",
    "open_source": "source",
    "publish": "publish",
    "transforms": "loading",
    "verify": "publish",
}
"""What is imported when it is first used, and the module of the store that has it."""


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"..store.{_NEED_TORCH[name]}", __name__), name)
    return found


def __dir__() -> Sequence[str]:
    return __all__


list = list_entries  # last: it shadows the builtin
