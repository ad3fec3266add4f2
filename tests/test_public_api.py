"""The public API: what users import and how they call it does not change by accident.

``python tests/test_public_api.py`` writes the table anew, where a change is meant; CHANGELOG.md says it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

TABLE = Path(__file__).with_name("public_api.txt")
MODULES = (
    "lightning_tspike", "lightning_tspike.analysis", "lightning_tspike.callbacks", "lightning_tspike.conversion",
    "lightning_tspike.data", "lightning_tspike.folding", "lightning_tspike.functional", "lightning_tspike.inference",
    "lightning_tspike.kernels", "lightning_tspike.models", "lightning_tspike.network", "lightning_tspike.neurons",
    "lightning_tspike.surrogate", "lightning_tspike.training", "lightning_tspike.zoo",
)  # fmt: skip


def public_api() -> list[str]:
    """A line for each public name: with its parameters, where it is called."""
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        for public in sorted(module.__all__):
            thing = getattr(module, public)
            lines.append(f"{name}.{public}{_parameters(thing)}")
    return lines


def _parameters(thing: object) -> str:
    if isinstance(thing, ModuleType) or not callable(thing):
        return ""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    # without types, which read differently from one Python to the next, and objects, which have addresses
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return re.sub(r"<[^>]*>", "...", str(inspect.Signature(bare)))


def test_it_is_as_the_table_says() -> None:
    known, found = TABLE.read_text().splitlines(), public_api()
    gone, new = sorted(set(known) - set(found)), sorted(set(found) - set(known))
    assert not gone, f"gone or changed: {gone}; if that is meant, python tests/test_public_api.py and CHANGELOG.md"
    assert not new, f"new or changed: {new}; if that is meant, python tests/test_public_api.py and CHANGELOG.md"


if __name__ == "__main__":
    TABLE.write_text("\n".join(public_api()) + "\n")
