"""``tspike bench``, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_tspike import zoo


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a compiler: nothing is compiled, which takes long."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.filterwarnings("ignore:.*compiler.*")
def test_table_and_json(tspike: Callable[..., Any], no_compiler: None, tmp_path: Path) -> None:
    words = (
        "--rounds=2",
        "--batch-size=2",
        "--timesteps=3",
        "--threads=1",
        "--runtimes=eager,compiled",
        "--json=speed.json",
    )
    result = tspike("bench", "tspike-digits", *words)
    assert result.status is None, result.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["network"] == "tspike-digits"
    assert (found["timesteps"], found["batch_size"], found["machine"]["threads"]) == (3, 2, 1)
    assert found["input"] == "test samples of digits"  # real ones
    assert len(found["runtimes"]["eager"]["seconds"]) == 2
    for line in ("T = 3, batch size 2, 1x8x8", "ANN, channels last", "stages.0.0.act1", "test samples of digits"):
        assert line in result.stdout
    assert "measuring" not in result.stdout + result.stderr  # no bar where nobody watches
    assert "compiled" in found["missing"]
    entry = Path(zoo.__file__).parent / "weights" / "tspike-digits"
    words = ("zoo", "publish", str(entry), "tester/net", "--recipe", "digits", "--folder", "out")
    (tmp_path / "none.json").write_text("{}")
    result = tspike(*words, "--speed", "none.json")
    assert "none.json is not what `tspike bench NETWORK --json FILE` writes" in result.stderr
    assert not (tmp_path / "out").exists()
    assert tspike(*words, "--speed", "speed.json").status is None
    times = json.loads((tmp_path / "out/config.json").read_text())["results"]["milliseconds"]
    assert times["eager"] == 1e3 * found["runtimes"]["eager"]["median_seconds"]
    assert "ANN, channels last" in times
    card = (tmp_path / "out/README.md").read_text()
    assert f"| eager | {times['eager']:.3g} |" in card
    assert "2 samples a call, " in card


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*compiler.*")
def test_frames_of_a_recipe(
    tspike: Callable[..., Any], no_compiler: None, shared: Callable[[str], Path], tmp_path: Path
) -> None:
    import zipfile

    zipfile.ZipFile(shared("data/nmnist_small.zip")).extractall(tmp_path)
    result = tspike(
        "bench",
        "tspike-nmnist",
        "--rounds=1",
        "--runtimes=eager",
        "--timesteps=2",
        "--recipe=nmnist",
        f"--data.root={tmp_path}",
    )
    assert result.status is None, result.stderr
    assert "T = 2, batch size 1, 2x34x34" in result.stdout
    assert "input: test samples of nmnist" in result.stdout


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (["tspike-digits", "--batch-size=0"], "--batch-size must be at least 1, got 0", 2),
        (["tspike-digits", "--timesteps=-1"], "--timesteps must be at least 1, got -1", 2),
        (["tspike-digits", "--data.root=."], "--data.root=.", 2),  # of which recipe?
        (["tspike-digits", "--json=nowhere/speed.json"], "nowhere/speed.json cannot be written", 1),
        (["tspike-digits", "--json=."], "name a file", 1),
        (["tspike-digits", "--runtimes=fast"], "runtimes must be among eager, channels last", 1),
        (["tspike-digit"], "did you mean 'tspike-digits'", 1),
        (["tspike-digits", "--recipe=digit"], "did you mean digits", 1),
        (["tspike-resnet34-imagenet"], "is planned", 1),
    ],
)
def test_mistakes(tspike: Callable[..., Any], words: list[str], message: str, status: int) -> None:
    result = tspike("bench", *words)
    said = result.stderr.splitlines()[-1]
    assert message in said.replace("'digits'", "digits")
    assert result.status == 2 if status == 2 else isinstance(result.status, str)
