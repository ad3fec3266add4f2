"""Recipes on real data by the command line, cut short; and what `tspike data check` says of the data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.callbacks import FoldExport
from lightning_tspike.data import DigitsDataModule, ImageDataModule
from lightning_tspike.folding import fold
from lightning_tspike.store.checkpoint import read_checkpoint
from lightning_tspike.training import distillation_loss, tet_loss


@pytest.fixture
def cifar10(shared: Callable[[str], Path], tmp_path: Path) -> Path:
    with np.load(shared("data/cifar10/cifar10_test.npz")) as file:
        for split, part in (("train", slice(0, 400)), ("test", slice(400, 500))):
            np.savez(tmp_path / f"{split}.npz", x=file["x"][part], y=file["y"][part], classes=file["classes"])
    return tmp_path


def fit(tspike: Callable[..., Any], recipe: str, root: Path, *changes: str) -> None:
    """Train by a recipe for a few steps, as a user would."""
    words = [f"--data.root={root}", "--data.batch_size=8", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    limits = [f"--trainer.limit_{part}_batches=2" for part in ("train", "val", "test")]
    result = tspike("fit", "--config", recipe, *words, *limits, *changes)
    assert result.status is None, result.stderr
    unfolded, folded, count = re.search(
        r"unfolded ([\d.]+) %, folded ([\d.]+) % \((\d+) images", result.stdout
    ).groups()
    assert unfolded == folded
    assert count == "16"


def test_fashion_mnist(tspike: Callable[..., Any], shared: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST").symlink_to(shared("data/fashion_mnist/FashionMNIST"))
    raw = tmp_path / "unpacked/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for file in (tmp_path / "FashionMNIST/raw").iterdir():  # torchvision unpacks beside the archives
        (raw / file.name).symlink_to(file.resolve())
    fit(tspike, "fashion_mnist", tmp_path / "unpacked", "--data.download=true")


def test_cifar10(tspike: Callable[..., Any], cifar10: Path) -> None:
    fit(tspike, "cifar10_small", cifar10, "--data.dataset=npz", "--data.val_images=50")


@pytest.mark.slow
def test_tiny_imagenet(tspike: Callable[..., Any], tiny_imagenet: Path) -> None:
    small = ["--model.backbone=tspike_resnet_small", "--model.backbone_kwargs={}"]
    fit(tspike, "tiny_imagenet", tiny_imagenet, "--model.num_classes=20", "--data.num_workers=1", *small)


def test_nmnist(tspike: Callable[..., Any], nmnist: Path) -> None:
    fit(tspike, "nmnist", nmnist, "--model.backbone_kwargs={layers: [2, 2], widths: [4, 8]}")


def test_check_of_good_data(tspike: Callable[..., Any], nmnist: Path) -> None:
    result = tspike("data", "check", "nmnist", f"--data.root={nmnist}", "--data.val_share=0.2")
    assert result.status is None, result.stderr
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["train"][:2] == ["40", "4x2x34x34"]
    assert rows["val"][0] == "10"
    assert rows["test"][0] == "47"  # the sample has two test recordings of the digit 8
    assert rows["train"][-1] == rows["test"][-1] == "0"
    assert float(rows["train"][-2]) > 0  # milliseconds
    assert rows["9"] == ["9", "-", "nine", "4", "1", "5"]


def test_check_names_what_cannot_be_read(tspike: Callable[..., Any], tiny_imagenet: Path) -> None:
    broken = sorted((tiny_imagenet / "train").rglob("*.JPEG"))[7]
    broken.write_bytes(broken.read_bytes()[:500])
    result = tspike("data", "check", "tiny_imagenet", f"--data.root={tiny_imagenet}")
    assert result.status == 1
    assert f"{broken} cannot be read" in result.stdout
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert (rows["train"][0], rows["train"][-1]) == ("79", "1")
    assert (rows["val"][0], rows["val"][-1]) == ("80", "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nmnst"], "there is no recipe 'nmnst'; did you mean 'nmnist'"),
        (
            ["nmnist", "--data.root=nowhere"],
            r"no training recordings of NMNIST in .*nowhere/NMNIST: expected NMNIST/Train/DIGIT/\*\.bin",
        ),
        (["fashion_mnist", "--data.root=nowhere"], "train-images-idx3-ubyte"),
        (["digits", "--data.batch_size=0"], "batch_size must be at least 1, got 0"),
        (["empty.yaml"], "empty.yaml has no section 'data'"),
    ],
)
def test_check_explains_mistakes(tspike: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "empty.yaml").write_text("model: {}\n")
    result = tspike("data", "check", *words)
    assert re.search(message, str(result.status) + result.stderr), result


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cifar10_small_modern", "resnet19_cifar10_modern"])
def test_everything_together(tspike: Callable[..., Any], cifar10: Path, tmp_path: Path, recipe: str) -> None:
    """Mixed images and labels, TET, a teacher and averaged weights: folded as unfolded, and resumed bit for bit."""
    teacher = tmp_path / "teacher.pth"
    small = {"layers": [1], "widths": [4]}
    torch.save(timm.create_model("tspike_resnet_small", num_classes=10).state_dict(), teacher)
    words = [
        f"--model.teacher_weights={teacher}", "--model.teacher=tspike_resnet_small", "--model.sched=constant",
        "--model.backbone=tspike_resnet_small", f"--model.backbone_kwargs={json.dumps(small)}", "--model.lr=0.01",
        "--data.dataset=npz", "--data.val_images=50", "--data.num_workers=0", "--trainer.precision=32-true",
    ]  # fmt: skip
    run = tmp_path / "runs" / recipe
    fit(tspike, recipe, cifar10, *words, "--trainer.max_epochs=2")
    fit(tspike, recipe, cifar10, *words)
    fit(tspike, recipe, cifar10, *words, "--trainer.max_epochs=2", "--ckpt_path=last")
    whole, resumed = (torch.load(run / f"version_{i}/checkpoints/last.ckpt", weights_only=True) for i in range(2))
    assert whole["global_step"] == resumed["global_step"] == 4
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    options = whole["hyper_parameters"]
    assert options["weight_decay"] == 5e-4
    assert (options["loss"], options["teacher_per_step"], options["label_smoothing"]) == ("tet", True, 0.1)
    assert not any("teacher" in name for name in whole["state_dict"])


def test_teacher_sees_the_mixed_images(tmp_path: Path, cifar10: Path) -> None:
    """The first step's loss, by hand: of every time step, against mixed labels and what the teacher says of them."""
    teacher = timm.create_model("tspike_resnet_small", num_classes=10).eval()
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")

    class First(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: TernarySNNModule, batch: object, index: int) -> None:
            x, y = batch
            assert y.shape == (8, 10)
            assert ((y > 0).sum(1) > 1).any()
            logits = module.network(x, per_step=True)
            loss = tet_loss(logits, y, label_smoothing=0.1)
            distillation = sum(distillation_loss(step, teacher(x)) for step in logits) / len(logits)
            self.expected = (0.5 * loss + 0.5 * distillation).item()
            self.accuracy = (logits.mean(0).argmax(1) == y.argmax(1)).float().mean().item()

        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            self.logged = trainer.logged_metrics["train/loss"].item()

    first = First()
    module = TernarySNNModule(
        "tspike_resnet_small", num_classes=10, timesteps=2, loss="tet", label_smoothing=0.1,
        teacher="tspike_resnet_small", teacher_weights=str(tmp_path / "teacher.pth"), teacher_per_step=True,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", logger=False, callbacks=[first],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = ImageDataModule("npz", str(cifar10), val_images=50, mixup=0.8, cutmix=1.0, batch_size=8)
    trainer.fit(module, data)
    assert first.logged == pytest.approx(first.expected, rel=1e-5)
    assert trainer.logged_metrics["train/acc1"].item() == pytest.approx(first.accuracy)


def test_averaged_weights_are_what_is_saved_and_folded(tmp_path: Path) -> None:
    """As in the modern recipes: the checkpoint and its folded copy hold the average, not the last step."""
    L.seed_everything(3, verbose=False)
    module = TernarySNNModule(
        "tspike_resnet_small", num_classes=10, in_chans=1, timesteps=2, backbone_kwargs={"layers": [1], "widths": [4]}
    )
    average, export = EMAWeightAveraging(decay=0.9), FoldExport(on_error="raise")
    keep = ModelCheckpoint(tmp_path, "last", monitor=None)
    trainer = L.Trainer(
        max_epochs=2,
        limit_train_batches=5,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[keep, average, export],
    )
    weights = []

    class _Spy(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
            weights.append({name: p.detach().clone() for name, p in pl_module.network.named_parameters()})

    trainer.callbacks.append(_Spy())
    trainer.fit(module, DigitsDataModule(batch_size=32))
    mean = weights[0]
    for step in weights[1:]:
        mean = {name: 0.9 * mean[name] + 0.1 * step[name] for name in mean}
    saved = read_checkpoint(keep.best_model_path).network
    for name, parameter in saved.named_parameters():
        torch.testing.assert_close(parameter, mean[name], rtol=1e-4, atol=1e-5)
        if name.endswith("conv1.weight"):
            assert not torch.allclose(parameter, weights[-1][name], rtol=1e-3, atol=1e-4)
    x = torch.randn(4, 1, 8, 8)
    expected = fold(saved.eval())[0]
    torch.testing.assert_close(zoo.load(export.folders[Path(keep.best_model_path)])(x), expected(x))
