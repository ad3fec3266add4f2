"""Ternary-spike spiking neural networks for PyTorch Lightning, and a model zoo of them.

The names in ``__init__.pyi`` are imported when they are first used, so that the zoo can be listed without waiting for
torch.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import lazy_loader

__version__ = version("lightning-tspike")

# In a checkout the folders callbacks/ and zoo/ lie beside this one; installed, they are inside it. Python started in a
# checkout finds the checkout first, so it must work from there too, however the package was installed.
_here = Path(__file__).parent
if not (_here / "zoo").is_dir():
    __path__.append(str(_here.parent))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
