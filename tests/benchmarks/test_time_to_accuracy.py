"""``python -m benchmarks.time_to_accuracy`` on small images that can be learned, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.time_to_accuracy import PADDING, Images, main
from lightning_tspike import zoo
from lightning_tspike.data.image_files import NpzImages

# not 4: with AVX2 alone, torch 2.15 writes beyond its memory in the backward pass of a 1x1 convolution with stride 2
# that reads 4 channels, channels last
TINY = ("--widths", "8", "8", "16")
KEYS = {
    "device", "torch", "threads", "command", "settings", "parameters", "training_images", "test_images", "epochs",
    "ended_by", "load_seconds", "compile_seconds", "training_seconds", "evaluation_seconds", "seconds_per_epoch",
    "total_seconds", "fold_seconds", "seconds_to_accuracy", "peak_memory_mib", "accuracy", "decisions_changed_by_fold",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten coloured patterns of 16x16 pixels under noise, as train.npz and test.npz."""
    folder = tmp_path_factory.mktemp("patterns")
    rng = np.random.default_rng(0)
    patterns = rng.integers(40, 216, (10, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    for split, count in (("train", 640), ("test", 250)):
        y = rng.integers(0, 10, count)
        x = (patterns[y] + rng.normal(0, 40, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8)
        np.savez(folder / f"{split}.npz", x=x, y=y, classes=np.array([f"pattern {i}" for i in range(10)]))
    return folder


def run(data: Path, output: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and log of a small run."""
    small = ("--backbone", "tspike_resnet_small", "--device", "cpu", "--batch-size", "64", "--cutout", "4")
    main(["--data", str(data), "--output", str(output), *small, *more])
    log = [json.loads(line) for line in Path(f"{output}.jsonl").read_text().splitlines()]
    return json.loads(Path(f"{output}.json").read_text()), log


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    output = tmp_path_factory.mktemp("results") / "new" / "run.1"
    return *run(data, output, "--epochs", "6", "--no-compile"), output


def test_learns_and_says_when(trained: tuple[dict[str, Any], list[dict[str, Any]], Path]) -> None:
    results, log, output = trained
    assert results.keys() == KEYS
    assert results["epochs"] == len(log) == 6
    assert results["ended_by"] == "schedule"
    assert (results["training_images"], results["test_images"]) == (640, 250)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[-1]["test_accuracy"] == results["accuracy"]["last_epoch"] > 0.9
    first = next(row for row in log if row["test_accuracy"] >= 0.9)
    assert 0 < results["seconds_to_accuracy"]["90%"] == first["seconds"] <= results["total_seconds"]
    spent = results["compile_seconds"] + results["training_seconds"] + results["evaluation_seconds"]
    assert 0.9 * results["total_seconds"] < spent <= results["total_seconds"]
    assert "--epochs 6" in results["command"]
    assert not list(output.parent.glob(".*"))  # nothing half-written stays


def test_fold_and_int8(trained: tuple[dict[str, Any], list[dict[str, Any]], Path], data: Path) -> None:
    results, _, output = trained
    accuracies = results["accuracy"]
    assert accuracies["network"] == accuracies["last_epoch"]  # the CPU trains in float32
    assert abs(accuracies["folded"] - accuracies["network"]) <= 1 / 250
    assert results["decisions_changed_by_fold"] <= 1
    assert abs(accuracies["int8"] - accuracies["network"]) < 0.05
    assert accuracies["network_with_mirrored_images"] > 0.5

    network = zoo.load(f"{output}.folded")
    assert not any(neuron.raw_amplitude is not None for neuron in network.neurons().values())
    assert [file.name for file in Path(f"{output}.folded").glob("*.safetensors")] == ["model.int8.safetensors"]
    # what anyone would do with it: its own transform, an image at a time
    test, transform = NpzImages(data / "test.npz"), zoo.transforms(f"{output}.folded")
    with torch.no_grad():
        decided = network(torch.stack([transform(image) for image, _ in test])).argmax(1)
    assert (decided.numpy() == test.y).mean() == pytest.approx(accuracies["int8"], abs=1 / 250)
    assert network.pretrained_cfg["label_names"][3] == "pattern 3"


def test_the_same_seed_gives_the_same_run(data: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--limit-train", "128", "--limit-test", "20", "--no-compile", *TINY)
    runs = [run(data, tmp_path / str(i), *options, "--seed", seed) for i, seed in enumerate("778")]
    losses = [log[0]["loss"] for _, log in runs]
    assert losses[0] == losses[1] != losses[2]
    assert runs[0][0]["settings"]["widths"] == [8, 8, 16]
    assert runs[0][0]["parameters"] < 9000
    assert runs[0][0]["seconds_to_accuracy"] == {"90%": None, "93%": None, "94%": None}


def test_time_limit(data: Path, tmp_path: Path) -> None:
    options = ("--epochs", "10000", "--minutes", "0.02", "--limit-train", "64", "--limit-test", "20", *TINY)
    results, log = run(data, tmp_path / "run", *options, "--no-compile")
    assert results["ended_by"] == "time limit"
    assert results["total_seconds"] < 2
    assert 0 < results["epochs"] == len(log) < 10000
    assert results.keys() == KEYS
    assert zoo.load(tmp_path / "run.folded").num_classes == 10


def test_as_many_epochs_as_the_minutes_allow(data: Path, tmp_path: Path) -> None:
    options = ("--epochs", "auto", "--minutes", "0.05", "--limit-train", "64", "--limit-test", "20", *TINY)
    results, log = run(data, tmp_path / "run", *options, "--no-compile")
    assert results["settings"]["epochs"] >= results["epochs"] == len(log)
    assert results["settings"]["epochs"] > 1


def test_bfloat16_other_neurons_and_one_step_at_first(data: Path, tmp_path: Path) -> None:
    options = ("--epochs", "2", "--limit-train", "256", "--precision", "bfloat16", "--no-compile")
    other = ("--neuron", "binary_lif", "--amplitude", "channel", "--t1-share", "0.5")
    results, log = run(data, tmp_path / "run", *options, *other)
    assert [row["timesteps"] for row in log] == [1, 2]
    network = zoo.load(tmp_path / "run.folded")
    assert network.timesteps == 2
    assert {type(neuron).__name__ for neuron in network.neurons().values()} == {"BinaryLIF"}
    assert log[1]["loss"] < log[0]["loss"]
    assert results["decisions_changed_by_fold"] <= 1  # these are measured in float32


def test_compiling_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    """In weights, statistics or random numbers; what is compiled is run as it is, for compiling takes a minute."""
    options = ("--epochs", "2", "--limit-train", "200", "--limit-test", "20", *TINY)
    _, plain = run(data, tmp_path / "plain", *options, "--no-compile")
    with torch.compiler.set_stance("force_eager"):
        results, compiled = run(data, tmp_path / "compiled", *options)
    assert results["compile_seconds"] > 0
    assert [row["loss"] for row in compiled] == [row["loss"] for row in plain]


def images(count: int, size: int = 16) -> Images:
    x = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.41, 0.47, 0.63]), torch.tensor([0.2, 0.25, 0.3])  # no pixel is 0 when normalised
    return Images(x, torch.zeros(count).long(), mean, std)


def augment(data: Images, mirror: bool, cutout: int) -> Tensor:
    index = torch.arange(len(data.x)).flip(0)
    return data.augmented(index, torch.full((len(index),), mirror), torch.Generator().manual_seed(0), cutout).flip(0)


@pytest.mark.parametrize("mirror", [False, True])
def test_augmented_images_are_windows_of_padded_ones(mirror: bool) -> None:
    data = images(200)
    padded = nn.functional.pad(data.normalized(data.x), [PADDING] * 4, mode="reflect")
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1)  # [N, C, 9, 9, 16, 16]
    got = augment(data, mirror, cutout=0)
    got = got.flip(3) if mirror else got
    same = (windows == got[:, :, None, None]).all(-1).all(-1).all(1)  # [N, 9, 9]
    assert (same.flatten(1).sum(1) == 1).all()
    assert same.any(0).any(0).all()  # moved by every number of pixels, in both directions
    assert same.any(0).any(1).all()


def test_holes() -> None:
    data = images(500)
    whole, holed = augment(data, False, cutout=0), augment(data, False, cutout=6)
    cut = ((holed == 0) & (whole != 0)).all(1)  # [N, H, W]
    sizes = cut.flatten(1).sum(1)
    assert sizes.max() == 36
    assert sizes.min() >= 9  # a centre in the corner leaves a quarter
    assert (sizes == cut.any(2).sum(1) * cut.any(1).sum(1)).all()  # one rectangle each


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "--data"),
        (("--data", "{missing}", "--device", "cpu"), "there is no {missing}/train.npz: expected an npz file"),
        (("--data", "{data}", "--device", "cpu", "--batch-size", "999"), "--batch-size 999 is more than the 640"),
        (("--data", "{data}", "--device", "cpu", "--backbone", "tspike_resnet_smal"), "did you mean"),
        (("--data", "{data}", "--device", "cpu", "--widths", "4"), "one number per stage"),
        (("--data", "{data}", "--device", "cpu", "--limit-test", "0"), "0 is less than 1"),
        (("--data", "{data}", "--device", "cpu", "--t1-share", "1"), "1.0 does not lie in [0, 1)"),
        (("--data", "{data}", "--device", "cuda"), "torch finds no CUDA device"),
    ],
)
def test_complaints(
    words: tuple[str, ...], complaint: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {"missing": str(tmp_path.resolve()), "data": str(data)}
    with pytest.raises(SystemExit, match="2"):
        main([word.format(**places) for word in words])
    assert complaint.format(**places) in " ".join(capsys.readouterr().err.split())
