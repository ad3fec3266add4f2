"""What ``import lightning_tspike as lt`` gives, whatever has been imported before."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import FunctionType, ModuleType

import pytest

import lightning_tspike as lt

IMPORT_ALL = """
import pkgutil
import lightning_tspike as lt

# in a checkout other folders lie beside the zoo
OTHERS = ("lightning_tspike.benchmarks", "lightning_tspike.lightning_tspike")
rooms = [m for m in pkgutil.iter_modules(lt.__path__, "lightning_tspike.") if m.name not in OTHERS]
names = [m.name for m in rooms]
for room in rooms:
    path = __import__(room.name, fromlist=["x"])
    names += [m.name for m in pkgutil.walk_packages(getattr(path, "__path__", ()), f"{room.name}.")]
for name in names:
    __import__(name)
"""


def python(code: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_all_names_are_there() -> None:
    assert set(lt.__all__) == set(dir(lt))
    for name in lt.__all__:
        assert getattr(lt, name) is not None
    assert isinstance(lt.zoo, ModuleType)
    assert callable(lt.models.import_official)
    assert callable(lt.functional.ternary_lif)
    assert callable(lt.analysis.measure_energy)
    with pytest.raises(AttributeError, match="folds"):
        lt.folds  # noqa: B018


@pytest.mark.slow
def test_fold_and_ternarize_are_functions_whatever_has_been_imported() -> None:
    assert isinstance(lt.fold, FunctionType)
    assert isinstance(lt.ternarize, FunctionType)
    count, kinds, modules = python(
        IMPORT_ALL + "print(len(names))\n"
        "print(type(lt.fold).__name__, type(lt.ternarize).__name__)\n"
        "print([name for name in names if name.rpartition('.')[2] in ('fold', 'ternarize')])"
    )
    assert int(count) > 80
    assert kinds == "function function"
    assert modules == "[]"


def test_the_zoo_is_listed_without_torch() -> None:
    assert python("import sys, lightning_tspike as lt; lt.zoo.list(); print('torch' in sys.modules)") == ["False"]


def test_every_option_is_documented_once() -> None:
    for kind in (lt.TernarySNNModule, lt.data.ImageDataModule, lt.data.EventDataModule):
        for name in inspect.signature(kind).parameters:
            assert (kind.__doc__ or "").count(f"\n        {name}: ") == 1, f"{kind.__name__}: {name}"
