"""What a user installs: one top-level package with everything it needs inside, and a valid citation."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from cffconvert import Citation

from lightning_tspike import zoo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Names and sizes of the files in a freshly built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = out.glob("*.whl")
    assert file.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(file) as archive:
        return {file.filename: file.file_size for file in archive.infolist()}


def test_only_top_level_is_the_package(wheel: dict[str, int]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"lightning_tspike"}


def test_wheel_is_complete(wheel: dict[str, int]) -> None:
    """All but the float32 weights of larger entries, whose int8 weights are there."""
    source = {
        f"lightning_tspike/{folder}{path.relative_to(ROOT / top)}"
        for top, folder in (("lightning_tspike", ""), ("zoo", "zoo/"), ("callbacks", "callbacks/"))
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    larger = [name for name in zoo.list(status="trained") if zoo.info(name).precision == "int8"]
    assert source - set(wheel) == {f"lightning_tspike/zoo/weights/{name}/model.safetensors" for name in larger}
    assert sum(size for name, size in wheel.items() if "/zoo/weights/" in name) < 12_000_000
    assert {"lightning_tspike/py.typed", "lightning_tspike/zoo/recipes/digits.yaml"} <= source


@pytest.mark.slow
def test_import_needs_no_extra() -> None:
    code = """
import sys
for name in ("wandb", "tonic", "datasets", "webdataset", "sklearn", "tensorboard"):
    sys.modules[name] = None  # importing it fails
import lightning_tspike
from lightning_tspike import SpikingNetwork, TernaryLIF, TernarySNNModule, callbacks, cli, data, models, training, zoo
zoo.load("tspike-digits")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_unknown_name_at_the_top() -> None:
    import lightning_tspike

    assert lightning_tspike.__version__
    with pytest.raises(AttributeError, match="attribute TernarySNN"):
        lightning_tspike.TernarySNN  # noqa: B018


def test_citation_is_valid() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    citation = Citation(text)
    citation.validate()
    assert "2312.06372" in str(citation.cffobj["preferred-citation"])
    assert citation.cffobj["version"] == version("lightning-tspike")
