"""Still images from real files: torchvision's layout, folders, npz, Hugging Face datasets, WebDataset shards."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_tspike.data import DataError, ImageDataModule
from lightning_tspike.data.image_sources import SOURCES, ImageSource, Look
from lightning_tspike.data.image_transforms import Cutout, Mixing, evaluation_transform, training_transform
from lightning_tspike.files.input_spec import InputSpec


def set_up(*arguments: Any, **options: Any) -> ImageDataModule:
    data = ImageDataModule(*arguments, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def photos(folder: Path, count: int, side: int = 12) -> list[np.ndarray]:
    """Write random pictures, losslessly, to ``FOLDER/{a,b}/N.png`` in turn; gives them back."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(pixels[i]).save(folder / "ab"[i % 2] / f"{i}.png")
    return list(pixels)


def test_fashion_mnist(shared: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(shared("data/fashion_mnist"), tmp_path / "root")
    data = set_up("fashion_mnist", root=str(tmp_path / "root"), download=True, batch_size=100)  # unpacks what is there
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [55_000, 5_000, 10_000]
    assert not set(data.train_set.indices) & set(data.val_set.indices)
    x, y = next(iter(data.test_dataloader()))
    with gzip.open(shared("data/fashion_mnist/FashionMNIST/raw/t10k-images-idx3-ubyte.gz")) as file:
        raw = np.frombuffer(file.read(100 * 784 + 16), np.uint8)[16:].reshape(100, 1, 28, 28)
    torch.testing.assert_close(x, (torch.tensor(raw / 255).float() - 0.2860) / 0.3530)
    assert y[:5].tolist() == [9, 2, 1, 1, 6]
    assert data.class_names[9] == "Ankle boot"
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (100, 1, 28, 28)


def test_cifar10_as_npz(shared: Callable[[str], Path], tmp_path: Path) -> None:
    with np.load(shared("data/cifar10/cifar10_test.npz")) as file:
        x, y, classes = file["x"][:400], file["y"][:400], file["classes"]
    np.savez(tmp_path / "train.npz", x=x[:300], y=y[:300], classes=classes)
    np.savez(tmp_path / "test.npz", x=x[300:], y=y[300:], classes=classes)
    data = set_up("npz", root=str(tmp_path), val_images=50, batch_size=100, auto_augment="cifar10", cutout=16)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [250, 50, 100]
    assert data.num_classes == 10
    assert data.class_names[:2] == ["airplane", "automobile"]
    mean, std = x[:300].reshape(-1, 3).mean(0) / 255, x[:300].reshape(-1, 3).std(0) / 255
    assert data.preprocessing["mean"] == pytest.approx(mean, abs=1e-4)
    assert data.preprocessing["std"] == pytest.approx(std, abs=1e-4)
    images, labels = next(iter(data.test_dataloader()))
    mean, std = (torch.tensor(data.preprocessing[name])[:, None, None] for name in ("mean", "std"))
    expected = (torch.tensor(x[300:]).permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == y[300:].tolist()
    augmented, _ = next(iter(data.train_dataloader()))
    assert augmented.shape == (100, 3, 32, 32)
    holes = (augmented == 0).all(1).flatten(1).sum(1)
    assert (holes >= 64).all()  # a quarter of the square, at least, lies inside


def test_photos_are_resized_and_cropped(tmp_path: Path) -> None:
    """Evaluation by hand: the shorter side to size / crop_pct, the centre, scaled, normalised."""
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        pixels = np.random.default_rng(1).integers(0, 256, (90, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / split / "a" / "1.png")
    data = set_up("folder", root=str(tmp_path), image_size=28, interpolation="bicubic", mean=[0.5] * 3, std=[0.25] * 3)
    x, label = data.val_set[0]
    resized = Image.fromarray(pixels).resize((32, 48), Image.Resampling.BICUBIC)  # 28 / 0.875 = 32
    cropped = np.asarray(resized)[10:38, 2:30]
    torch.testing.assert_close(x, (torch.tensor(cropped).permute(2, 0, 1) / 255 - 0.5) / 0.25)
    assert label == 0
    assert data.test_set is data.val_set
    assert data.train_set[0][0].shape == (3, 28, 28)


def test_tiny_imagenet(shared: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(shared("data/tiny_imagenet_20.zip")) as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "tiny_imagenet_20"
    data = set_up("folder", root=str(root), image_size=48, batch_size=10, auto_augment="rand-m9-mstd0.5")
    assert (len(data.train_set), len(data.val_set), data.num_classes) == (2000, 1000, 20)
    assert data.class_names == sorted(path.name for path in (root / "train").iterdir())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, y = next(iter(loader))
        assert x.shape == (10, 3, 48, 48)
        assert y.max() < 20
    shutil.rmtree(root / "val" / data.class_names[3])
    with pytest.raises(ValueError, match=f"different classes.*{data.class_names[3]}"):
        data.setup("fit")
    (root / "val" / data.class_names[3]).mkdir()
    with pytest.raises(FileNotFoundError, match=f"1 of 20 classes in .*val have no image: {data.class_names[3]}"):
        data.setup("fit")


@pytest.mark.parametrize("damage", [lambda file: file.read_bytes()[:200], lambda _: b"no picture", lambda _: b""])
def test_corrupt_image(tmp_path: Path, damage: Callable[[Path], bytes]) -> None:
    for split in ("train", "val"):
        photos(tmp_path / split, 8)
    bad = tmp_path / "val" / "b" / "3.png"
    bad.write_bytes(damage(bad))
    with pytest.raises(DataError, match=rf"val/b/3.png cannot be read.*{'repair or remove it'}"):
        list(set_up("folder", root=str(tmp_path), image_size=8, batch_size=8).val_dataloader())
    data = set_up("folder", root=str(tmp_path), image_size=8, batch_size=8, on_error="skip")
    with pytest.warns(UserWarning, match="left out: .*3.png"):
        (_, labels), = data.val_dataloader()  # fmt: skip
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.val_set.unreadable == [str(bad)]


def test_hugging_face_dataset(tmp_path: Path) -> None:
    """A local one, as parquet files; by index and as a stream, the same images."""
    datasets = pytest.importorskip("datasets")
    pixels = photos(tmp_path / "pictures", 10)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split, numbers in (("train", range(8)), ("validation", range(8, 10))):
        rows = {
            "image": [str(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png") for i in numbers],
            "label": [i % 2 for i in numbers],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        embedded = table.map(lambda row: {"image": {"bytes": Path(row["image"].filename).read_bytes(), "path": None}})
        embedded.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    options: dict[str, Any] = {
        "root": str(tmp_path / "cache"), "image_size": 12, "crop_pct": 1.0, "batch_size": 2, "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }  # fmt: skip
    expected = torch.tensor(np.stack(pixels[8:])).permute(0, 3, 1, 2) / 255
    for kind in ("hfds", "hfids"):
        data = set_up(f"{kind}/{tmp_path / 'set'}", num_classes=None if kind == "hfds" else 2, **options)
        assert data.num_classes == 2
        (x, y), = data.val_dataloader()  # fmt: skip
        torch.testing.assert_close(x, expected)
        assert y.tolist() == [0, 1]
        labels = torch.cat([y for _, y in data.train_dataloader()])
        assert sorted(labels.tolist()) == [0] * 4 + [1] * 4


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Two shards of eight pictures for training, one of four for validation."""
    pytest.importorskip("webdataset")
    pixels = photos(tmp_path / "pictures", 20)
    folder = tmp_path / "shards"
    folder.mkdir()
    info: dict[str, Any] = {"splits": {}}
    for split, parts in (("train", [range(8), range(8, 16)]), ("validation", [range(16, 20)])):
        names = []
        for number, part in enumerate(parts):
            names.append(f"{split}-{number}.tar")
            with tarfile.open(folder / names[-1], "w") as tar:
                for i in part:
                    picture = (tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png").read_bytes()
                    for ending, content in (("png", picture), ("cls", str(i % 2).encode())):
                        member = tarfile.TarInfo(f"{i:04}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        lengths = [len(part) for part in parts]
        info["splits"][split] = {
            "name": split, "num_samples": sum(lengths), "filenames": names, "shard_lengths": lengths
        }  # fmt: skip
    (folder / "_info.json").write_text(json.dumps(info))
    return folder, pixels


@pytest.mark.parametrize("num_workers", [0, 2])
def test_webdataset_shards(shards: tuple[Path, list[np.ndarray]], num_workers: int) -> None:
    folder, pixels = shards
    options: dict[str, Any] = {
        "root": str(folder), "image_size": 12, "crop_pct": 1.0, "crop_padding": 0, "hflip": 0.0, "batch_size": 4,
        "mean": [0.0] * 3, "std": [1.0] * 3, "num_classes": 2, "num_workers": num_workers,
    }  # fmt: skip
    data = set_up("wds/", **options)
    x = torch.cat([x for x, _ in data.val_dataloader()])
    torch.testing.assert_close(x, torch.tensor(np.stack(pixels[16:])).permute(0, 3, 1, 2) / 255)

    def epoch(number: int) -> list[int]:
        data.trainer = type("Epoch", (), {"current_epoch": number})()  # what a loader asks the trainer for
        drawn = torch.cat([x for x, _ in data.train_dataloader()])
        known = {pixels[i].tobytes(): i for i in range(16)}
        return [known[(255 * x).round().byte().permute(1, 2, 0).numpy().tobytes()] for x in drawn]

    first = epoch(0)
    assert sorted(first) == list(range(16))
    assert sorted(epoch(1)) == list(range(16))
    assert epoch(1) != first
    with pytest.raises(DataError, match="image 1 of the stream has the label 1, expected a whole number from 0 to 0"):
        list(set_up("wds/", **{**options, "num_classes": 1, "num_workers": 0}).val_dataloader())
    with pytest.raises(FileNotFoundError, match="split 'trian'"):
        set_up("wds/", **options, train_split="trian")
    with pytest.raises(ValueError, match="set num_classes"):
        set_up("wds/", **{**options, "num_classes": None})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 8, 8, 3), np.float32), "y": np.zeros(4, int)}, r"x must be uint8 .*float32 \[4, 8, 8, 3\]"),
        ({"x": np.zeros((4, 3, 8, 8), np.uint8), "y": np.zeros(4, int)}, r"C = 1 or 3"),
        ({"x": np.zeros((4, 8, 8, 3), np.uint8), "y": np.zeros(3, int)}, r"y must be 4 whole numbers"),
        ({"x": np.zeros((4, 8, 8, 3), np.uint8), "y": np.zeros(4)}, r"y must be 4 whole numbers.*float64"),
        ({"x": np.zeros((4, 8, 8, 3), np.uint8)}, r"arrays x and y.*y"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1, int)}, r"allow_pickle"),
    ],
)
def test_npz_files_that_are_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        set_up("npz", root=str(tmp_path), val_images=1)
    content = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "train.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read as npz file"):
        set_up("npz", root=str(tmp_path), val_images=1)


def test_label_outside_of_the_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((6, 8, 8, 1), np.uint8), y=[0, 1, 2, 0, 1, 2])
    data = set_up("npz", root=str(tmp_path), val_images=1, num_classes=2, mean=[0.0], std=[1.0])
    with pytest.raises(DataError, match=r"image 2 of .*test.npz has the label 2, expected a whole number from 0 to 1"):
        list(data.test_dataloader())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset": "fashion"}, ValueError, "'fashion'.*fashion_mnist"),
        ({"dataset": "cifar10", "train_split": "x"}, ValueError, "splits of its own"),
        ({"val_images": 0}, ValueError, "val_images must be at least 1"),
        ({"hflip": 2.0}, ValueError, "probabilities"),
        ({"cutout": -1}, ValueError, "cutout"),
        ({"mean": [0.1, 0.2, 0.3]}, ValueError, "mean must have 1 numbers"),
        ({"std": [0.0]}, ValueError, "std must be positive"),
        ({"auto_augment": "rant-m9"}, ValueError, "'rant-m9'"),
        ({"crop_fill": "white"}, ValueError, "crop_fill must be 'black' or 'reflect', got 'white'"),
        ({"alternate_hflip": True, "hflip": 0.2}, ValueError, "alternate_hflip"),
        ({"dataset": "folder"}, FileNotFoundError, "train does not exist"),
        ({"dataset": "npz"}, FileNotFoundError, "train.npz"),
        ({"dataset": "wds/", "num_classes": 2}, FileNotFoundError, "_info.json"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        set_up(**{"root": str(tmp_path), **options})


@pytest.mark.parametrize(
    ("dataset", "folder", "file"),
    [
        ("fashion_mnist", "FashionMNIST/raw", "train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw", "t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-py", "data_batch_5"),
        ("cifar100", "cifar-100-python", "meta"),
    ],
)
def test_images_not_there(tmp_path: Path, dataset: str, folder: str, file: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{file}.*download=true") as error:
        set_up(dataset, root=str(tmp_path))
    assert str(tmp_path / folder) in str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn", "rand-m9-mstd0.5", "augmix-m3", "3a", "original"])
def test_policies_work_on_grey_and_colour(policy: str, channels: int) -> None:
    preprocessing = {"input_size": [channels, 20, 20], "mean": [0.5] * channels, "std": [0.25] * channels}
    transform = training_transform(InputSpec.of(preprocessing), crop_padding=2, auto_augment=policy, random_erasing=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    for _ in range(20):
        x = transform(image)
        assert x.shape == (channels, 20, 20)
        assert x.isfinite().all()


def test_cutout() -> None:
    """Its centre is anywhere with the same probability; what lies inside of the image is zero, all else untouched."""
    x = torch.ones(2, 10, 10)
    sizes = set()
    for _ in range(300):
        out = Cutout(4)(x)
        rows, columns = (out[0] == 0).any(1).nonzero().flatten(), (out[0] == 0).any(0).nonzero().flatten()
        assert (out == 0).sum() == 2 * len(rows) * len(columns)
        assert rows.tolist() == list(range(rows[0], rows[-1] + 1))
        sizes.add((len(rows), len(columns)))
    assert sizes == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}
    assert x.min() == 1


def test_mixup_by_hand() -> None:
    samples = [(torch.full((1, 4, 4), float(i)), i) for i in range(4)]
    x, y = Mixing(4, mixup=1.0, cutmix=0.0)(samples)
    for image, label in zip(x, y, strict=True):
        assert label.sum().item() == pytest.approx(1)
        torch.testing.assert_close(image, torch.full((1, 4, 4), (label * torch.arange(4)).sum().item()))
    with pytest.raises(ValueError, match="-1"):
        Mixing(4, mixup=-1.0, cutmix=0.0)


def test_frames_are_mixed_alike_at_every_time_step() -> None:
    samples = [(torch.full((3, 2, 6, 6), float(i)), i) for i in range(4)]
    for options in ({"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        x, y = Mixing(4, **options)(samples)
        assert type(x) is torch.Tensor
        assert x.shape == (4, 3, 2, 6, 6)
        assert all(torch.equal(x[:, 0], x[:, t]) for t in range(3))
        torch.testing.assert_close(x.mean((1, 2, 3, 4)), y @ torch.arange(4.0))  # shares of labels are those of pixels


def test_grey_images_are_evaluated_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    transform = evaluation_transform(InputSpec((1, 28, 28), (0.5,), (0.25,)))
    torch.testing.assert_close(transform(Image.fromarray(pixels)), (torch.tensor(pixels)[None] / 255 - 0.5) / 0.25)


class Stripes(ImageSource):
    """A kind of dataset of one's own: a class for each direction of stripes."""

    splits: ClassVar[Mapping[str, str | None]] = {"train": "many", "val": "few", "test": None}

    def __init__(self, dataset: str, root: str) -> None:
        super().__init__(dataset, root)
        self.look = Look((1, 8, 8), (0.5,), (0.5,), crop_padding=0, hflip=0.0)

    def open(self, split: str) -> Any:
        return StripesImages({"many": 20, "few": 4}[split])


class StripesImages:
    classes = ("across", "down")

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        stripes = np.zeros((8, 8), np.uint8)
        stripes[::2] = 255
        return Image.fromarray(stripes.T if index % 2 else stripes), index % 2

    def filename(self, index: int) -> str:
        return f"stripes {index}"


def test_a_kind_of_dataset_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "stripes", Stripes)
    data = ImageDataModule("stripes", batch_size=4)
    data.prepare_data()
    data.setup("fit")
    assert (data.num_classes, data.class_names) == (2, ("across", "down"))
    assert data.preprocessing["input_size"] == [1, 8, 8]
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 1, 8, 8)
    assert labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(images[1, 0], images[0, 0].T)
    assert images[0, 0, :2, 0].tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="'stripes'"):
        ImageDataModule("stripe")


def test_images_are_mirrored_in_every_other_epoch(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(12) % 2)
    options = {"val_split": "train", "test_split": "train", "batch_size": 12, "crop_padding": 0}
    data = set_up("npz", root=str(tmp_path), alternate_hflip=True, **options)
    plain = torch.stack([data.val_set[i][0] for i in range(12)])
    loader = data.train_dataloader()
    mirrored = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        images, _ = next(iter(loader))
        kept = [any(torch.equal(image, seen) for seen in images) for image in plain]
        flipped = [any(torch.equal(image.flip(-1), seen) for seen in images) for image in plain]
        assert all(a != b for a, b in zip(kept, flipped, strict=True))
        mirrored.append(flipped)
    assert sum(mirrored[0]) == 6
    assert mirrored[1] == [not was for was in mirrored[0]]


def test_crops_can_be_filled_with_what_is_inside(tmp_path: Path) -> None:
    x = np.full((4, 8, 8, 3), 200, dtype=np.uint8)
    x[::2] = 100  # else they would have no variance to divide by
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(4) % 2)
    options = {"val_split": "train", "test_split": "train", "crop_padding": 4}
    black = set_up("npz", root=str(tmp_path), **options)
    reflected = set_up("npz", root=str(tmp_path), crop_fill="reflect", **options)
    torch.manual_seed(0)
    assert all(len(reflected.train_set[i][0].unique()) == 1 for i in range(4) for _ in range(8))
    assert any(len(black.train_set[i][0].unique()) > 1 for i in range(4) for _ in range(8))
