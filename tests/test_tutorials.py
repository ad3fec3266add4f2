"""The tutorials run from their first cell to the last, and show what they gave."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NAMES = ["events_as_a_stream", "sparse_integers", "train_and_fold", "your_own_network"]


def test_all_of_them_are_tried() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shown_outputs_are_of_one_run_and_of_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text()
    cells = [cell for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [word for word in ("/tmp/", "/home/", "/work/", "/root/") if word in text]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_they_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1" if os.environ.get("PYTEST_XDIST_WORKER") else "2")
    book = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
