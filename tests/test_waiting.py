"""A sign of life: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CODE = """
import time
from lightning_tspike._waiting import waiting
with waiting("folding [x]"):
    time.sleep(0.5)
print("done")
"""


def test_a_terminal_sees_what_is_done() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs, stdout=subprocess.PIPE, text=True)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.communicate()[0] == "done\n"
    assert b"folding [x]" in shown
    assert b"0:00:0" in shown


def test_a_pipe_gets_nothing() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("done\n", "")
