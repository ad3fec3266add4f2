"""The first hour of somebody new: the first tutorial's commands in an empty folder, with nothing in any cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUN = "runs/digits/version_0/checkpoints/best"
Process = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def python(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Process]:
    """Python with the package as a wheel installs it; what it caches is in a home that was empty."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", place, ROOT], check=True, capture_output=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extractall(place)
    home = tmp_path_factory.mktemp("home")
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "HF_HOME": str(home / "hf")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LIGHTNING_TSPIKE", "HF_"))}
    environment = kept | places | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}

    def run(code: str, *words: str) -> Process:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=300
        )

    assert Path(run("import lightning_tspike as lt; print(lt.__file__)").stdout).is_relative_to(place)
    return run


@pytest.fixture(scope="module")
def tspike(python: Callable[..., Process]) -> Callable[..., Process]:
    return lambda *words: python("from lightning_tspike.cli.main import main; main()", *words)


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """What the tutorial says to type: words after ``tspike``."""
    cells = json.loads((ROOT / "docs/tutorials/train_and_fold.ipynb").read_text())["cells"]
    lines = [line.strip() for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
    return [line.split()[1:] for line in lines if line.startswith("tspike ")]


@pytest.fixture(scope="module")
def trained(tspike: Callable[..., Process], commands: list[list[str]]) -> Process:
    words = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.timesteps=1"]
    small = ["--model.backbone_kwargs={layers: [1, 1], widths: [4, 8]}", "--trainer.enable_progress_bar=false"]
    return tspike(*commands[0], *words, *small)


def test_every_line_is_of_use(trained: Process) -> None:
    """No tips, no deprecations of other people's code, no tables of zeros; paths that can be copied."""
    lines = [
        "network:    tspike_resnet_small, T = 1, [0-9,]+ parameters, 5 layers of neurons, amplitudes learned in [0-9]+",
        rf"checkpoint: {RUN}\.ckpt",
        rf"folded:     {RUN}\.folded",
        r"test accuracy: unfolded [\d.]+ %, folded [\d.]+ % \(360 images; decisions that differ: \d+\)",
        "firing rates of the folded network on the test set",
    ]
    said = [line for line in trained.stdout.splitlines() if line.strip() and line[0] not in "┏┃┡│└"]
    assert len(said) == len(lines), said
    for line, pattern in zip(said, lines, strict=True):
        assert re.fullmatch(pattern, line.strip()), line
    for line in filter(str.strip, trained.stderr.splitlines()):
        assert re.match(r"Seed set to|`Trainer.fit` stopped|testing the (un)?folded network", line), line


def test_from_a_checkpoint_to_a_file_for_other_programs(
    trained: Process,
    folder: Path,
    python: Callable[..., Process],
    tspike: Callable[..., Process],
    commands: list[list[str]],
) -> None:
    """Fold, load, show, export: each reads what the one before has written."""
    assert [words[0] for words in commands] == ["fit", "fold", "show", "export"]
    _, folding, showing, exporting = commands
    onnxruntime = pytest.importorskip("onnxruntime")
    grey = (load_digits().images[0] * 255 / 16).astype(np.uint8)  # [8, 8]
    Image.fromarray(grey).save(folder / "digit.png")

    assert "folded" in tspike(*folding).stdout
    code = (
        "import lightning_tspike as lt; from PIL import Image; net = lt.zoo.load('folded'); "
        "print(net(lt.zoo.transforms('folded')(Image.open('digit.png'))[None]).tolist()[0])"
    )
    logits = json.loads(python(code).stdout)

    tspike(*showing)
    assert "stages.1.0.act2" in (folder / "digit.html").read_text()

    tspike(*exporting)
    session = onnxruntime.InferenceSession(folder / "digits.onnx")
    preprocessing = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    pixels = (grey / 255 - preprocessing["mean"][0]) / preprocessing["std"][0]
    exported = session.run(None, {"images": pixels[None, None].astype(np.float32)})[0][0]
    assert exported == pytest.approx(logits, abs=1e-5)
