"""The datamodules: real images, fixed splits, an order that depends on seed and epoch alone."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_tspike.data import DigitsDataModule, ImageDataModule, ImageFolderDataModule


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


def test_fashion_mnist(shared: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(shared("data/fashion_mnist"), tmp_path / "root")
    data = ImageDataModule("fashion_mnist", root=str(tmp_path / "root"), download=True, batch_size=100)
    data.prepare_data()  # unpacks what is there
    data.setup("fit")
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [55_000, 5_000, 10_000]
    assert not set(data.train_set.indices) & set(data.val_set.indices)
    x, y = next(iter(data.test_dataloader()))
    with gzip.open(shared("data/fashion_mnist/FashionMNIST/raw/t10k-images-idx3-ubyte.gz")) as file:
        raw = np.frombuffer(file.read(100 * 784 + 16), np.uint8)[16:].reshape(100, 1, 28, 28)
    torch.testing.assert_close(x, (torch.tensor(raw / 255).float() - 0.2860) / 0.3530)
    assert y[:5].tolist() == [9, 2, 1, 1, 6]
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (100, 1, 28, 28)


def test_images_not_there(tmp_path: Path) -> None:
    data = ImageDataModule("fashion_mnist", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.*download=true") as error:
        data.setup("fit")
    assert str(tmp_path / "FashionMNIST" / "raw") in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "fashion"}, "'fashion'.*fashion_mnist"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "-1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


def test_image_folder_on_tiny_imagenet(shared: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(shared("data/tiny_imagenet_20.zip")) as archive:
        archive.extractall(tmp_path)
    data = ImageFolderDataModule(str(tmp_path / "tiny_imagenet_20"), image_size=48, batch_size=10, num_workers=0)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), data.num_classes) == (2000, 1000, 20)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, y = next(iter(loader))
        assert x.shape == (10, 3, 48, 48)
        assert y.max() < 20
    shutil.rmtree(tmp_path / "tiny_imagenet_20" / "val" / data.val_set.classes[3])
    with pytest.raises(ValueError, match=f"different classes.*{data.val_set.classes[3]}"):
        data.setup("fit")


def test_image_folder_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train does not exist"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")
