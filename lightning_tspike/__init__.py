"""Ternary-spike spiking neural networks for PyTorch Lightning, and a model zoo of them.

The names below are imported when they are first used, so that the zoo can be listed without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import callbacks, data, models, zoo
    from .module import TernarySNNModule
    from .neurons import TernaryLIF
    from .ternarize import SpikingNetwork

__all__ = ["SpikingNetwork", "TernaryLIF", "TernarySNNModule", "callbacks", "data", "models", "zoo"]

__version__ = version("lightning-tspike")

# In a checkout the folders callbacks/ and zoo/ lie beside this one; installed, they are inside it. Python started in a
# checkout finds the checkout first, so it must work from there too, however the package was installed.
_here = Path(__file__).parent
if not (_here / "zoo").is_dir():
    __path__.append(str(_here.parent))

_FILES = {"SpikingNetwork": "ternarize", "TernaryLIF": "neurons", "TernarySNNModule": "module"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_FILES.get(name, name)}", __name__)
    return getattr(module, name) if name in _FILES else module
