"""Folders and checkpoints that earlier code has written load, fold and answer as they did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightning_tspike import TernarySNNModule, fold, zoo
from lightning_tspike.store.checkpoint import read_checkpoint
from lightning_tspike.store.publish import verify

WRITTEN = Path(__file__).parent / "written_before"
LOGITS = load_file(WRITTEN / "logits.safetensors")


def same(network: torch.nn.Module, expected: str) -> bool:
    with torch.no_grad():
        return torch.allclose(network(LOGITS["x"]), LOGITS[expected], rtol=1e-4, atol=1e-5)


def test_folder() -> None:
    network = zoo.load(WRITTEN / "net")
    assert same(network, "folded")
    assert network.pretrained_cfg["interpolation"] == "bicubic"
    assert network.pretrained_cfg["label_names"] == list("0123456789")
    start = zoo.load(WRITTEN / "net", folded=False)
    assert same(start, "unfolded")
    assert same(fold(start, merge_bn=True)[0], "folded")
    assert zoo.transforms(WRITTEN / "net")(Image.new("L", (20, 20))).shape == (1, 8, 8)


def test_int8_weights_are_the_rounded_ones(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "net", tmp_path / "net")
    assert zoo.load(tmp_path / "net", precision="int8").num_classes == 10
    (tmp_path / "net" / "model.int8.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="has 5 bytes, not 4208"):
        verify(tmp_path / "net")


def test_checkpoint() -> None:
    network, _, label_names, _ = read_checkpoint(WRITTEN / "a.ckpt")
    assert same(network.eval(), "unfolded")
    assert same(fold(network)[0], "folded")
    assert label_names == list("0123456789")
    assert same(zoo.load(WRITTEN / "a.ckpt"), "folded")
    assert zoo.transforms(WRITTEN / "a.ckpt")(Image.new("L", (8, 8))).shape == (1, 8, 8)
    module = TernarySNNModule.load_from_checkpoint(WRITTEN / "a.ckpt")
    assert same(module.eval(), "unfolded")
    assert module.hparams["lr"] == 0.05
