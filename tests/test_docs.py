"""What the documents say can be run."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import torch

from lightning_tspike.cli.main import commands
from lightning_tspike.cli.training import options_of_commands
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


@pytest.mark.parametrize("room", ["callbacks", "zoo"])
def test_examples_of_rooms_that_lie_beside_the_package(room: str, names_of_examples: dict[str, Any]) -> None:
    package = importlib.import_module(f"lightning_tspike.{room}")
    modules = [importlib.import_module(f"{package.__name__}.{found.name}") for found in iter_modules(package.__path__)]
    for module in [package, *modules]:
        assert not doctest.testmod(module, extraglobs=names_of_examples).failed, module.__name__


def test_examples_in_docstrings_are_run() -> None:
    """As doctests: by pytest in the package, by the test above in the rooms beside it."""
    for folder in ("lightning_tspike", "callbacks", "zoo"):
        for path in (ROOT / folder).rglob("*.py"):
            for example in re.findall(r"^ +Example:\n +(.*)", path.read_text(), flags=re.MULTILINE):
                assert example.startswith(">>> "), f"{path.name}: {example}"


def test_commands_in_pages_are_commands() -> None:
    """With options that they have; those of Trainer, module and data are Lightning's parser's to know."""
    known = {name: {*options} for name, options in options_of_commands().items()}
    seen = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and words[0] in ("uv", "run", "srun", "torchrun"):
                    words.pop(0)
                if words[:1] != ["tspike"] or words[1:] in (["--help"], ["--version"]):
                    continue
                seen += 1
                check_command([word for word in words[1:] if word != "..."], known)
    assert seen > 15


def check_command(words: list[str], known: dict[str, set[str]]) -> None:
    if words[0] in known:
        more = [word for word in words[1:] if word.startswith("--") and word.partition("=")[0] not in known[words[0]]]
    else:
        options, more = commands().open_parser().parse_known_args(words)
        assert options.command.run is not None, words
    # of the kind of data, of callbacks and loggers, which another option names
    assert not [word for word in more if not word.startswith(("--data.", "--model.", "--trainer."))], words
