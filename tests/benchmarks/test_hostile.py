"""A part of what ``python -m benchmarks.hostile`` does, of every kind, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(module: str, *words: str) -> str:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_hostile_folders_are_refused() -> None:
    out = run("hostile_folders", "180", "7")
    assert "180 folders, 0 faults" in out
    for kind in ("flip", "truncate", "remove", "tensors", "replace_weights", "configuration", "text"):
        assert f"{kind}: refused" in out
    assert "beside: the same" in out


@pytest.mark.slow
def test_hostile_checkpoints_imports_and_transforms_are_refused() -> None:
    out = run("hostile", "72", "7", "hostile_checkpoints", "hostile_imports", "hostile_transforms")
    assert "72 checkpoints, imports, transforms, 0 faults" in out
    for kind in ("flip", "truncate", "call", "zipped", "tensors", "hyper_parameters", "facts", "something_else"):
        assert f"checkpoints, {kind}: refused" in out
    for kind in ("levels", "entries"):
        assert f"imports, {kind}: refused" in out
    for kind in ("entry", "frames", "whole"):
        assert f"transforms, {kind}: refused" in out


@pytest.mark.slow
def test_hostile_run_folders_give_a_page_or_are_refused() -> None:
    out = run("hostile_runs", "9", "7")
    assert "9 run folders, 0 faults" in out
    for kind in ("events", "flip", "layers", "names", "numbers", "size", "special", "spoil", "text"):
        assert f"run folders, {kind}: " in out
    assert ": the same" in out
    assert ": refused" in out
