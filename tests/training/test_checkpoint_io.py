"""Checkpoints on the disk: whole or not there; and which ones a run keeps."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from lightning_tspike import zoo
from lightning_tspike.callbacks import BestCheckpoint, LastCheckpoint
from lightning_tspike.training.checkpoint_io import AtomicCheckpointIO


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more to any file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, is_there: bool) -> None:
    file = tmp_path / "checkpoints" / "best.ckpt"
    if is_there:
        AtomicCheckpointIO().save_checkpoint({"epoch": 1}, file)
    with files_of_at_most(20_000), pytest.raises(OSError, match=r"best\.ckpt") as caught:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, file)
    assert caught.value.errno == 27  # EFBIG; a full disk's is ENOSPC
    assert [path.name for path in file.parent.iterdir()] == (["best.ckpt"] if is_there else [])
    if is_there:
        assert torch.load(file, weights_only=True) == {"epoch": 1}


def test_what_a_killed_process_has_left_is_written_anew(tmp_path: Path) -> None:
    """And a link in its place is not followed."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".best.ckpt.partial").symlink_to(tmp_path / "precious")
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, f"file://{tmp_path}/best.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "precious"]
    assert (tmp_path / "precious").read_text() == "kept"
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "best.ckpt", weights_only=True) == {"epoch": 1}


def test_other_filesystems_are_left_to_lightning() -> None:
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, "memory://runs/best.ckpt")
    assert AtomicCheckpointIO().load_checkpoint("memory://runs/best.ckpt", weights_only=True) == {"epoch": 1}


class _Scripted(L.LightningModule):
    """Logs a value for each epoch."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        if not self.trainer.sanity_checking:
            self.log("val/acc1", self.values[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.5, 0.9, 0.9, 0.7], "max", 2),
        ([0.5, 0.9, 0.8, 0.7], "max", 1),
        ([1.0, 1.0, 1.0, 1.0], "max", 3),
        ([0.5, 0.1, 0.3, 0.1], "min", 3),
        ([0.5, float("nan"), 0.3, 0.2], "max", 0),
    ],
)
def test_best_and_last(tmp_path: Path, values: list[float], mode: str, best: int) -> None:
    """The best of ties is the latest; the last is that of the last epoch, however bad and wherever it is validated."""
    loader = DataLoader(TensorDataset(torch.zeros(2, 1)))
    for every in (1, 2):
        folder = tmp_path / str(every)
        trainer = L.Trainer(
            default_root_dir=folder, max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[BestCheckpoint(mode=mode), LastCheckpoint()],
            check_val_every_n_epoch=every,
        )  # fmt: skip
        trainer.fit(_Scripted(values), loader, loader)
        files = {path.name: path for path in (folder / "checkpoints").iterdir()}
        assert files.keys() == {"best.ckpt", "last.ckpt"}
        assert torch.load(files["last.ckpt"], weights_only=True)["epoch"] == 3
        assert trainer.checkpoint_callback.best_model_path == str(files["best.ckpt"])
        if every == 1:
            assert torch.load(files["best.ckpt"], weights_only=True)["epoch"] == best


@pytest.mark.parametrize("recipe", sorted(path.stem for path in zoo.recipe_path("digits").parent.glob("*.yaml")))
def test_every_recipe_keeps_its_best_and_its_last(recipe: str) -> None:
    """The best before the last, so that the last one knows which is best."""
    callbacks = yaml.safe_load(zoo.recipe_path(recipe).read_text())["trainer"]["callbacks"]
    names = [callback["class_path"] for callback in callbacks]
    kept = [name for name in names if "Checkpoint" in name]
    assert kept == ["lightning_tspike.callbacks.BestCheckpoint", "lightning_tspike.callbacks.LastCheckpoint"]
