"""What all datamodules share: fixed splits, an order that depends on seed and epoch alone, each sample read once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.data import ClassificationDataModule, DataError, DigitsDataModule, ImageDataModule
from lightning_tspike.data.samplers import EpochSampler, InOrderSampler
from lightning_tspike.data.samples import Samples

RECIPES = sorted(path.stem for path in zoo.recipe_path("digits").parent.glob("*.yaml"))


class _Source:
    """Images whose one pixel is their number; some cannot be read, some have labels out of range."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), mislabelled: tuple[int, ...] = ()) -> None:
        self.count, self.broken, self.mislabelled = count, broken, mislabelled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.broken:
            raise OSError("cut off")
        return torch.full((1, 4, 4), float(index)), 7 if index in self.mislabelled else index % 3

    def filename(self, index: int) -> str:
        return f"images/{index}.png"


class _Numbered(ClassificationDataModule):
    """Batches that say which samples they are made of."""

    def __init__(self, source: _Source, transform: Any = lambda x: x, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "num_workers": 0, **options})
        self.num_classes = 3
        self.train_set = self.val_set = self.test_set = Samples(
            source, transform, num_classes=3, on_error=self.on_error
        )


def numbers(loader: Any) -> Iterator[int]:
    for x, _ in loader:
        yield from x[:, 0, 0, 0].int().tolist()


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = DigitsDataModule()
    data.setup("fit")
    sizes = [len(part) for part in (data.train_set, data.val_set, data.test_set)]
    assert sizes == [1257, 180, 360]
    parts = [set(part.indices) for part in (data.train_set, data.val_set, data.test_set)]
    assert set.union(*parts) == set(range(1797))
    assert sum(map(len, parts)) == 1797
    digits = load_digits()
    index = data.test_set.indices[5]
    image, label = data.test_set[5]
    assert label == digits.target[index]
    expected = (torch.tensor(digits.images[index] / 16).float() - 0.3053) / 0.3760
    torch.testing.assert_close(image, expected[None])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_order_depends_on_seed_and_epoch(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    def epoch(seed: int, epoch: int) -> torch.Tensor:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        data = DigitsDataModule(batch_size=200, num_workers=num_workers)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([y for _, y in loader])

    first = epoch(0, 0)
    assert len(first) == 1257
    assert torch.equal(epoch(0, 0), first)
    assert not torch.equal(epoch(0, 1), first)
    assert not torch.equal(epoch(1, 0), first)


def test_workers_augment_differently_and_reproducibly(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's, numpy's and Python's random numbers alike."""

    def draw(x: Tensor) -> Tensor:
        return torch.stack([x[0, 0, 0], torch.rand(()), torch.tensor(np.random.rand()), torch.tensor(random.random())])

    def epoch(seed: int, epoch: int) -> Tensor:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        data = _Numbered(_Source(32), draw, num_workers=2)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        drawn = torch.cat([x for x, _ in loader]).double()
        return drawn[drawn[:, 0].argsort()]  # by number of the sample

    first = epoch(0, 0)
    assert torch.equal(epoch(0, 0), first)
    for column in (1, 2, 3):
        assert len(first[:, column].unique()) == 32  # no two samples alike, whichever worker had them
        assert not (epoch(0, 1)[:, column] == first[:, column]).any()
        assert not (epoch(1, 0)[:, column] == first[:, column]).any()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_samplers_share_samples_out(processes: int) -> None:
    source = _Source(32)
    for epoch in range(2):
        samplers = [EpochSampler(source, processes, rank, seed=0) for rank in range(processes)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert len({len(share) for share in shares}) == 1  # or DDP would wait for ever
        drawn = [index for share in shares for index in share]
        assert len(set(drawn)) == len(drawn) == 32 // processes * processes
    in_order = [InOrderSampler(source, processes, rank) for rank in range(processes)]
    assert sorted(index for sampler in in_order for index in sampler) == list(range(32))
    assert sum(map(len, in_order)) == 32


@pytest.mark.slow
def test_two_processes_see_each_sample_once(tmp_path: Path) -> None:
    """Training, validation and test under DDP: 31 samples in batches of 4 on two processes."""
    images = np.arange(31, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(31) % 3)
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import json
        import lightning as L
        import torch
        from lightning_tspike import TernarySNNModule
        from lightning_tspike.data import ImageDataModule

        class Record(L.Callback):
            def __init__(self):
                self.seen = {}

            def note(self, trainer, stage, batch):
                pixels = batch[0][:, 0, 0, 0] * 0.25 + 0.5
                self.seen.setdefault(stage, []).extend((pixels * 255).round().int().tolist())

            def on_train_batch_end(self, trainer, module, outputs, batch, index):
                self.note(trainer, f"train{trainer.current_epoch}", batch)

            def on_validation_batch_end(self, trainer, module, outputs, batch, index):
                self.note(trainer, f"val{trainer.current_epoch}", batch)

            def on_test_batch_end(self, trainer, module, outputs, batch, index):
                self.note(trainer, "test", batch)

        if __name__ == "__main__":
            L.seed_everything(1)
            record = Record()
            trainer = L.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, num_sanity_val_steps=0, logger=False,
                enable_checkpointing=False, callbacks=[record], enable_progress_bar=False,
            )
            data = ImageDataModule(
                "npz", ".", val_images=6, mean=[0.5], std=[0.25], crop_padding=0, hflip=0.0, batch_size=4
            )
            module = TernarySNNModule("tspike_resnet_small", 3, 1, 1)
            trainer.fit(module, data)
            trainer.test(module, data)
            with open(f"seen{trainer.global_rank}.json", "w") as file:
                json.dump(record.seen, file)
            torch.distributed.destroy_process_group()
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    shares = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)]
    seen = {stage: shares[0][stage] + shares[1][stage] for stage in shares[0]}
    assert sorted(seen["test"]) == list(range(31))
    held_out = sorted(seen["val0"])
    assert len(set(held_out)) == len(held_out) == 6
    assert sorted(seen["val1"]) == held_out
    for stage in ("train0", "train1"):
        assert len(set(seen[stage])) == len(seen[stage]) == 24  # of 25: an odd one waits
        assert not set(seen[stage]) & set(held_out)
    assert seen["train0"] != seen["train1"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_samples_are_left_out_and_counted(num_workers: int) -> None:
    data = _Numbered(_Source(10, broken=(3,), mislabelled=(5, 8)), num_workers=num_workers, on_error="skip")
    seen = list(numbers(data.val_dataloader()))
    assert sorted(seen) == [0, 1, 2, 4, 6, 7, 9]
    assert data.val_set.unreadable == ["images/3.png", "images/5.png", "images/8.png"]
    with pytest.warns(UserWarning, match=r"3 of 10 samples could not be read.*images/3.png, images/5.png"):
        data.teardown("fit")


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"broken": (3,)}, r"images/3.png cannot be read: OSError: cut off; .*on_error='skip'"),
        ({"mislabelled": (5,)}, r"images/5.png has the label 7, expected a whole number from 0 to 2"),
    ],
)
def test_unreadable_samples_end_the_run(faults: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(_Numbered(_Source(10, **faults)).val_dataloader())


def test_a_batch_of_nothing_is_an_error() -> None:
    data = _Numbered(_Source(8, broken=(4, 5, 6, 7)), on_error="skip")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="none of the 4 samples"):
        list(data.val_dataloader())


def test_cutmix_batches_train_the_network(tmp_path: Path) -> None:
    """Loss and accuracy of mixed labels, by hand."""
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(40) % 4)
    data = ImageDataModule("npz", str(tmp_path), val_images=8, mixup=0.2, cutmix=1.0, batch_size=32)
    module = TernarySNNModule("tspike_resnet_small", 4, 2, 3, label_smoothing=0.1)
    seen: dict[str, Any] = {}

    class Record(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen["y"] = batch[1]
            with torch.random.fork_rng():
                seen["logits"] = pl_module.network(batch[0]).detach()

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, i: int) -> None:
            seen["loss"] = outputs["loss"].item()

    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Record()],
    )  # fmt: skip
    trainer.fit(module, data)
    y, logits = seen["y"], seen["logits"]
    assert y.shape == (32, 4)
    torch.testing.assert_close(y.sum(1), torch.ones(32))
    assert (y.max(1).values < 1).any()
    smoothed = 0.9 * y + 0.1 / 4
    assert seen["loss"] == pytest.approx(-(smoothed * logits.log_softmax(-1)).sum(1).mean().item(), rel=1e-5)
    accuracy = (logits.argmax(1) == y.argmax(1)).float().mean().item()
    assert trainer.callback_metrics["train/acc1"].item() == pytest.approx(accuracy)


def test_labels_that_do_not_fit_the_network() -> None:
    module = TernarySNNModule("tspike_resnet_small", 4, 1, 1)
    with pytest.raises(ValueError, match=r"of shape \(2, 3\) for 2 images; expected .*\[2, 4\]"):
        module.training_step((torch.zeros(2, 1, 8, 8), torch.full((2, 3), 1 / 3)), 0)


@pytest.mark.parametrize(
    ("options", "message"), [({"batch_size": 0}, "batch_size"), ({"num_workers": -1}, "-1"), ({"on_error": "x"}, "'x'")]
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_fit_together(recipe: str) -> None:
    """Model and data of every recipe can be made, and agree on classes, channels and time steps."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.add_lightning_class_args(TernarySNNModule, "model")
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    settings = yaml.safe_load(zoo.recipe_path(recipe).read_text())
    settings.pop("seed_everything")
    parsed = parser.parse_object(settings)
    parsed.trainer = None  # its devices may not be here
    made = parser.instantiate_classes(parsed)
    assert made.model.hparams["in_chans"] == made.data.preprocessing["input_size"][0]
    if (frames := made.data.preprocessing.get("frames")) is not None:
        assert made.model.hparams["timesteps"] == frames["timesteps"]
    known = {"cifar100": 100, "tiny": 200, "imagenet": 1000, "gesture": 11}
    expected = next((k for name, k in known.items() if name in recipe), 10)
    assert made.model.hparams["num_classes"] == getattr(made.data, "num_classes", expected) == expected
