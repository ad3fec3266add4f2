"""What the documents say can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lightning_tspike.graph.layer_rules import LAYER_RULES
from lightning_tspike.graph.rule_table import rule_table
from lightning_tspike.graph.rules import RULES

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "page",
    [
        "docs/export.md",
        "docs/fold.md",
        "docs/inference.md",
        "docs/moving.md",
        "docs/speed.md",
        "docs/training.md",
        "docs/watching.md",
        "docs/zoo.md",
    ],
)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a file
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_readme_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes a file
    text = (ROOT / "README.md").read_text()
    load, train, fold, run = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    known: dict[str, object] = {"images": torch.rand(2, 1, 8, 8)}
    exec(load, known)
    assert known["logits"].shape == (2, 10)
    fit = "Trainer(max_epochs=90, callbacks=callbacks).fit(module, data)"
    assert fit in train  # that takes days; all before it must work
    exec(train.replace(fit, ""), {})
    exec(fold.replace("resnet18", "test_resnet"), known)
    assert known["report"].kept == []
    exec(run, known)
    assert known["decision"].classes.shape == (2,)
    assert (tmp_path / "digits.onnx").exists()


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_table_of_the_fold_is_that_of_the_rules() -> None:
    """``python -m lightning_tspike.graph.rule_table`` prints it."""
    text = (ROOT / "docs/fold.md").read_text()
    found = text.partition("<!-- python -m lightning_tspike.graph.rule_table -->\n")[2].partition("<!-- end -->")[0]
    assert found == rule_table()
    assert all(rule.covers in found for rule in (*LAYER_RULES, *RULES))
