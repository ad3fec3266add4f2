"""A part of what ``python -m benchmarks.hostile_folders`` does, of every kind, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_hostile_folders_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.hostile_folders", "180", "7"]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "180 folders, 0 faults" in result.stdout
    for kind in ("flip", "truncate", "remove", "tensors", "replace_weights", "configuration", "text"):
        assert f"{kind}: refused" in result.stdout
    assert "beside: the same network" in result.stdout
