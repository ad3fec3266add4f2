"""``tspike doctor``: what it says of a recipe, of a run with its weights, and of layers that do not work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig

TINY = ("--model.backbone_kwargs={layers: [1, 1], widths: [4, 8]}", "--data.batch_size=20")


@pytest.fixture
def doctor(tspike: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any]]]:
    def run(source: str, *words: str) -> tuple[str, dict[str, Any]]:
        result = tspike("doctor", source, *words, "--json", "found.json")
        assert result.status is None, result.stderr
        return result.stdout, json.loads((tmp_path / "found.json").read_text())

    return run


def test_a_recipe(doctor: Callable[..., tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    text, found = doctor("digits", *TINY, "--model.timesteps=3", "--trainer.max_epochs=7")
    network = create_network(
        NetworkConfig("tspike_resnet_small", 10, 1, 3, backbone_kwargs={"layers": [1, 1], "widths": [4, 8]})
    )
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    assert found["health"].keys() == network.neurons().keys()
    assert found["health"]["act1"]["neurons"] == 4 * 8 * 8
    assert all(0 < layer["firing_rate"] < 1 and layer["membrane"] > 0 for layer in found["health"].values())
    assert (found["troubles"], found["fold"]["deviation"]) == ({}, pytest.approx(0, abs=1e-9))
    assert found["energy"]["layers"][0]["ann_macs"] == 4 * 9 * 8 * 8
    kept = {(row["memory"], row["timesteps"]): row for row in found["memory"]}
    assert kept.keys() == {(mode, t) for mode in ("full", "packed", "lean") for t in (1, 3)}
    sizes = [kept[mode, 3]["bytes_per_image"] for mode in ("full", "packed", "lean")]
    assert sizes == sorted(sizes, reverse=True)
    assert 2 < kept["full", 3]["bytes_per_image"] / kept["full", 1]["bytes_per_image"] < 3.1
    assert kept["lean", 1]["largest_batch"] > kept["full", 3]["largest_batch"] > 1000
    assert found["hours"] == pytest.approx(7 * found["batches"] * 20 / found["images_per_second"] / 3600)
    assert "tspike_resnet_small, T = 3, 10 classes, input 1x8x8" in text
    assert "0 of 5 layers of neurons are silent" in text
    assert f"minutes for 7 epochs of {found['batches']} batches" in text


def test_layers_that_are_silent(doctor: Callable[..., tuple[str, dict[str, Any]]]) -> None:
    text, found = doctor("digits", *TINY, "--model.threshold=1e6")
    assert found["troubles"]["act1"] == "silent (0.00% of its neurons fire)"
    assert "5 of 5 layers of neurons are silent" in text


def test_of_a_run_with_its_weights(
    doctor: Callable[..., tuple[str, dict[str, Any]]], tspike: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--model.lr=0.05")
    assert tspike("fit", "--config=digits", *TINY, *words).status is None
    run = tmp_path / "runs" / "digits" / "version_0"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for source in (run, run / "checkpoints" / "last.ckpt"):
        _, found = doctor(str(source))
        amplitudes = {neuron["name"]: neuron["amplitude"] for neuron in found["fold"]["neurons"]}
        for name in ("act1", "stages.1.0.act2"):
            assert amplitudes[name] == pytest.approx(saved[f"network.model.{name}.raw_amplitude"].tolist(), rel=1e-6)
        assert amplitudes["act1"] != [1.0]


@pytest.mark.slow
def test_a_recipe_for_other_machines(doctor: Callable[..., tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    """ImageNet on 8 GPUs with 16-bit floats: what can be said of it here."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(4):
                Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / split / label / f"{i}.png")
    data = (f"--data.root={tmp_path}", "--data.num_workers=0", "--data.batch_size=4", "--data.image_size=32")
    model = ("--model.backbone=tspike_resnet_small", "--model.num_classes=2")
    text, found = doctor("resnet34_imagenet", *data, *model)
    assert (found["precision"], found["epochs"], found["batches"]) == ("bf16-mixed", 320, 2)
    assert "input 3x32x32" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nonsense",), "nonsense"),
        (("runs/x/last.ckpt",), "there is no checkpoint"),
        ((".",), "has no config.yaml of a run"),
        (("fashion_mnist", "--data.root=nowhere"), "nowhere"),
        (("digits", "--json", "no/where.json"), "--json no/where.json cannot be written: name a file in a folder"),
        (("digits", "--device", "cuda"), "torch sees no GPU here"),
    ],
)
def test_mistakes_end_with_a_line(tspike: Callable[..., Any], words: tuple[str, ...], message: str) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = tspike("doctor", *words)
    assert result.status not in (None, 0)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
