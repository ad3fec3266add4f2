"""Where still images come from: one class for each kind of dataset, registered by the word before a slash.

A new kind is a subclass of :class:`ImageSource` and a line in :data:`SOURCES`; nothing else knows the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import datasets

from .image_files import NpzImages, ReaderImages, TorchvisionImages, open_folder, open_hugging_face, open_stream

__all__ = ["SOURCES", "ImageSource", "Images", "Look", "PixelSource", "StreamSource", "find_source"]


class Images(Protocol):
    """One split: (PIL image, label) by index."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, where there are any."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...

    def filename(self, index: int) -> str:
        """What a message calls the image."""
        ...


@runtime_checkable
class PixelSource(Protocol):
    """A split whose images are in memory, all of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Some images, uint8 [B, H, W, C], and their labels."""
        ...


@dataclass(frozen=True)
class Look:
    """What the images of a dataset look like.

    Attributes:
        input_size: (C, H, W).
        mean: Of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
        crop_padding: Training images are cropped from a copy with so many black pixels around; None crops and resizes
            at random, as is usual of photos, which come in all sizes.
        hflip: Probability of mirroring a training image.
        crop_pct: Share of the shorter side that the centre crop of the evaluation keeps.
    """

    input_size: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    crop_padding: int | None
    hflip: float = 0.5
    crop_pct: float = 1.0


PHOTOS = Look((3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, None, crop_pct=0.875)


class ImageSource:
    """One kind of dataset.

    Attributes:
        splits: Name of the split for each role, ``"train"``, ``"val"`` and ``"test"``. Where ``"val"`` has none,
            training images are held out; where ``"test"`` has none, the validation images serve.
        has_fixed_splits: Whether these names are the only ones.
        suffix: What follows the kind in the name of a dataset.
        look: What its images look like; None where only the images can tell.
        num_classes: Number of classes, where it is known before anything is read.

    Args:
        dataset: What the user wrote, such as ``"hfds/NAME"``.
        root: Folder of the files.
    """

    splits: ClassVar[Mapping[str, str | None]] = {"train": "train", "val": None, "test": "test"}
    has_fixed_splits: ClassVar[bool] = False
    suffix: ClassVar[str] = ""

    def __init__(self, dataset: str, root: str) -> None:
        self.dataset, self.root = dataset, root
        self.look: Look | None = PHOTOS
        self.num_classes: int | None = None

    def fetch(self, splits: Sequence[str]) -> None:
        """Fetch what the Hub has, once per machine; nothing to do for local files."""

    def download(self) -> None:
        """Fetch and unpack the files into ``root``, where the user asked for it."""

    def open(self, split: str) -> Images:
        """The images of a split.

        Raises:
            FileNotFoundError: Files are missing; the message says which, and where.
            ValueError: They cannot be read.
            ModuleNotFoundError: A package is not installed.
        """
        raise NotImplementedError

    def look_of(self, images: Any) -> Look:
        """What images look like that had to be read for it."""
        raise NotImplementedError

    def count_classes(self, images: Any) -> int | None:
        """Number of classes, by the training images; None where they do not say."""
        return len(images.classes) if images.classes else None


class StreamSource(ImageSource):
    """A dataset that is read from front to back."""

    splits: ClassVar[Mapping[str, str | None]] = {"train": "train", "val": "validation", "test": None}
    suffix = "/NAME"

    def stream(self, split: str, *, is_training: bool, batch_size: int, seed: int) -> Any:
        """The images of a split; errors as :func:`lightning_tspike.data.image_files.open_stream`."""
        return open_stream(
            self.dataset, self.root, split, is_training=is_training, batch_size=batch_size, seed=seed
        )  # fmt: skip


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class _Torchvision(ImageSource):
    """CIFAR, MNIST and Fashion-MNIST, whose statistics are those of their training images."""

    has_fixed_splits = True
    kind: ClassVar[type[Any]]
    known: ClassVar[Look]
    classes: ClassVar[int] = 10
    folder: ClassVar[str]
    files: ClassVar[Sequence[str]] = _IDX

    def __init__(self, dataset: str, root: str) -> None:
        super().__init__(dataset, root)
        self.look, self.num_classes = self.known, self.classes

    def download(self) -> None:
        for split in ("train", "test"):
            self._open(split, download=True)

    def open(self, split: str) -> TorchvisionImages:
        return self._open(split, download=False)

    def _open(self, split: str, *, download: bool) -> TorchvisionImages:
        files = [f"{self.folder}/{file}" for file in self.files]
        return TorchvisionImages(
            self.dataset, self.kind, self.root, train=split == "train", files=files, download=download
        )


class Cifar10(_Torchvision):
    """CIFAR-10."""

    kind = datasets.CIFAR10
    known = Look((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), crop_padding=4)
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


class Cifar100(_Torchvision):
    """CIFAR-100."""

    kind = datasets.CIFAR100
    known = Look((3, 32, 32), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), crop_padding=4)
    classes = 100
    folder = "cifar-100-python"
    files = ("train", "test", "meta")


class FashionMnist(_Torchvision):
    """Fashion-MNIST."""

    kind = datasets.FashionMNIST
    known = Look((1, 28, 28), (0.2860,), (0.3530,), crop_padding=2)
    folder = "FashionMNIST/raw"


class Mnist(_Torchvision):
    """MNIST; a mirrored digit is another digit, or none."""

    kind = datasets.MNIST
    known = Look((1, 28, 28), (0.1307,), (0.3081,), crop_padding=2, hflip=0.0)
    folder = "MNIST/raw"


class Folder(ImageSource):
    """A folder for each class, ``ROOT/SPLIT/CLASS/*``."""

    splits: ClassVar[Mapping[str, str | None]] = {"train": "train", "val": "val", "test": None}

    def open(self, split: str) -> ReaderImages:
        return open_folder(Path(self.root) / split)


class Npz(ImageSource):
    """``ROOT/SPLIT.npz``; the images tell their size and statistics."""

    def __init__(self, dataset: str, root: str) -> None:
        super().__init__(dataset, root)
        self.look = None

    def open(self, split: str) -> NpzImages:
        return NpzImages(Path(self.root) / f"{split}.npz")

    def look_of(self, images: NpzImages) -> Look:
        _, height, width, channels = images.x.shape
        return Look((channels, height, width), *images.mean_and_std(), crop_padding=height // 8)

    def count_classes(self, images: NpzImages) -> int:
        return super().count_classes(images) or int(images.y.max()) + 1


class HuggingFace(ImageSource):
    """``hfds/NAME``, kept below ``root``."""

    splits = StreamSource.splits
    suffix = "/NAME"

    def fetch(self, splits: Sequence[str]) -> None:
        for split in splits:
            self.open(split)

    def open(self, split: str) -> ReaderImages:
        return open_hugging_face(self.dataset, self.root, split)


class Shards(StreamSource):
    """``wds/``: WebDataset shards in ``root``, described by its ``_info.json``."""

    suffix = "/"


SOURCES: dict[str, type[ImageSource]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "fashion_mnist": FashionMnist,
    "mnist": Mnist,
    "folder": Folder,
    "npz": Npz,
    "hfds": HuggingFace,
    "hfids": StreamSource,
    "wds": Shards,
}
"""Kinds of datasets by the name of the dataset, or what it has before its first slash."""


def find_source(dataset: str, root: str) -> ImageSource:
    """The source that a dataset's name stands for.

    Raises:
        ValueError: There is no such kind.
    """
    kind = dataset.partition("/")[0]
    if kind not in SOURCES:
        known = ", ".join(repr(name + source.suffix) for name, source in SOURCES.items())
        raise ValueError(f"unknown dataset {dataset!r}, expected one of {known}")
    return SOURCES[kind](dataset, root)
