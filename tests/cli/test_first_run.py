"""What somebody reads who trains for the first time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_line_is_of_use(tmp_path: Path) -> None:
    """No tips, no deprecations of other people's code, no tables of zeros; paths that can be copied."""
    words = ["fit", "--config", "digits", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.timesteps=1"]
    small = ["--model.backbone_kwargs={layers: [1, 1], widths: [4, 8]}", "--trainer.enable_progress_bar=false"]
    result = subprocess.run(
        [Path(sys.executable).with_name("tspike"), *words, *small], cwd=tmp_path, capture_output=True, text=True,
        check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    run = "runs/digits/version_0/checkpoints/best"
    lines = [
        "network:    tspike_resnet_small, T = 1, [0-9,]+ parameters, 5 layers of neurons, amplitudes learned in [0-9]+",
        rf"checkpoint: {run}\.ckpt",
        rf"folded:     {run}\.folded",
        r"test accuracy: unfolded [\d.]+ %, folded [\d.]+ % \(360 images; decisions that differ: \d+\)",
        "firing rates of the folded network on the test set",
    ]
    said = [line for line in result.stdout.splitlines() if line.strip() and line[0] not in "┏┃┡│└"]
    assert len(said) == len(lines), said
    for line, pattern in zip(said, lines, strict=True):
        assert re.fullmatch(pattern, line.strip()), line
    for line in filter(str.strip, result.stderr.splitlines()):
        assert re.match(r"Seed set to|`Trainer.fit` stopped|testing the (un)?folded network", line), line
