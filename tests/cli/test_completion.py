"""What a shell completes after ``tspike``, asked of bash itself."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ASK = """
source ./complete.bash
IFS='|' read -ra COMP_WORDS <<< "$1"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
_shtab_tspike 2> /dev/null
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_recipes_entries_and_files(tspike: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "complete.bash").write_text(tspike("completion", "bash").stdout)
    (tmp_path / "mine.yaml").touch()
    for line, expected in {
        "tspike|z": {"zoo"},
        "tspike|zoo|li": {"list"},
        "tspike|fit|--model.timest": {"--model.timesteps"},
        "tspike|fit|--config|cifar10_f": {"cifar10_fast", "cifar10_fast_sparse"},
        "tspike|doctor|mi": {"mine.yaml"},
        "tspike|bench|tspike-d": {"tspike-digits"},
        "tspike|export|tspike-digits|--for": {"--format"},
        "tspike|import-spikingjelly|--network|tspike-d": set(),  # a function of SpikingJelly, none of the zoo
        "tspike|completion|b": {"bash"},
    }.items():
        answer = subprocess.run(
            ["bash", "--norc", "-c", ASK, "bash", line],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert set(answer.stdout.split()) == expected, line


def test_zsh_has_a_script_of_its_own(tspike: Callable[..., Any]) -> None:
    script = tspike("completion", "zsh").stdout
    assert script.startswith("#compdef tspike")
    assert "_tspike_networks() { compadd tspike-cifar10" in script
