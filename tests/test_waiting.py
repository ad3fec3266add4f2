"""A sign of life: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

WAIT = """
import time
from lightning_tspike._waiting import waiting
with waiting("folding [x]"):
    time.sleep(0.5)
print("done")
"""
COUNT = """
import time
from lightning_tspike._waiting import counted
for batch in counted([[0] * 500] * 3, "evaluating [x]", unit="images", size=len):
    time.sleep(0.2)
print("done")
"""


def on_a_terminal(code: str) -> str:
    """What a terminal gets."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, text=True, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.communicate()[0] == "done\n"
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_sees_what_is_done() -> None:
    shown = on_a_terminal(WAIT)
    assert "folding [x]" in shown
    assert "0:00:0" in shown


def test_a_terminal_sees_how_fast_it_goes() -> None:
    shown = on_a_terminal(COUNT)
    assert "evaluating [x]" in shown
    assert all(0 < int(speed.replace(",", "")) <= 2500 for speed in re.findall(r"([\d,]+) images/s", shown))
    assert "images/s" in shown


@pytest.mark.parametrize("code", [WAIT, COUNT])
def test_a_pipe_gets_nothing(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("done\n", "")
