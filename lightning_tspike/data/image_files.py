"""One split of images on disk or on the Hub: (PIL image, label) by index, or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader
from torch import Tensor

__all__ = [
    "NpzImages",
    "ReaderImages",
    "TorchvisionImages",
    "open_folder",
    "open_hugging_face",
    "open_stream",
    "read_image",
]


class TorchvisionImages:
    """Training or test images of a dataset of torchvision.

    Args:
        name: For messages.
        kind: The dataset's class.
        root: Folder that holds the files as torchvision lays them out.
        train: The training images, otherwise the test images.
        files: What they are called below ``root``, for messages.
        download: Let torchvision fetch and unpack what is not there.

    Raises:
        FileNotFoundError: The files are not there, or damaged, and ``download`` is off or did not help.
    """

    def __init__(
        self, name: str, kind: type[Any], root: str, *, train: bool, files: Sequence[str], download: bool = False
    ) -> None:
        self.name, self.split = name, "train" if train else "test"
        try:
            self.dataset = kind(root, train=train, download=download)
        except (RuntimeError, OSError) as error:  # torchvision's checks; URLError is an OSError
            fetch = f"the download did not work: {error}" if download else "download=true lets torchvision fetch them"
            raise FileNotFoundError(
                f"no {name} in {Path(root).resolve() / Path(files[0]).parent}: expected the files "
                f"{', '.join(Path(file).name for file in files)}, as published; put them there ({fetch})"
            ) from error
        self.classes: Sequence[str] = self.dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.dataset[index]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return tuple(self.dataset.data.shape[1:3])

    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Some images, uint8 [B, H, W, C], and their labels."""
        pixels = torch.as_tensor(self.dataset.data[indices])  # an array, or a tensor without channels
        return pixels if pixels.ndim == 4 else pixels[..., None], [int(self.dataset.targets[i]) for i in indices]

    def filename(self, index: int) -> str:
        return f"{self.split} image {index} of {self.name}"


class NpzImages:
    """Images of one ``.npz`` file: ``x`` uint8 [N, H, W, C] with C = 1 or 3, ``y`` whole numbers [N].

    Names of the classes may be in ``classes`` [K].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or an array is missing or of another type or shape.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file.resolve()}: expected an npz file with arrays x and y")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                self.x, self.y = arrays["x"], arrays["y"]
                self.classes = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
        except Exception as error:  # zipfile, lzma, numpy: each has its own
            raise ValueError(f"{file} cannot be read as npz file with arrays x and y: {error}") from error
        if self.x.dtype != np.uint8 or self.x.ndim != 4 or self.x.shape[3] not in (1, 3):
            raise ValueError(
                f"{file}: x must be uint8 [N, H, W, C] with C = 1 or 3, got {self.x.dtype} {list(self.x.shape)}"
            )
        if self.y.shape != self.x.shape[:1] or self.y.dtype.kind not in "iu":
            raise ValueError(
                f"{file}: y must be {len(self.x)} whole numbers, one for each image, got {self.y.dtype} "
                f"{list(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = self.x[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), int(self.y[index])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.x.shape[1:3]

    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Some images, uint8 [B, H, W, C], and their labels."""
        return torch.from_numpy(self.x[indices]), self.y[indices].tolist()

    def filename(self, index: int) -> str:
        return f"image {index} of {self.file}"

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel in [0, 1], to four decimals."""
        counts = [np.bincount(self.x[..., c].ravel(), minlength=256) for c in range(self.x.shape[3])]
        grey = np.arange(256) / 255
        means = [float(np.average(grey, weights=count)) for count in counts]
        variances = [np.average((grey - m) ** 2, weights=count) for m, count in zip(means, counts, strict=True)]
        return [round(m, 4) for m in means], [round(float(v) ** 0.5, 4) for v in variances]


class ReaderImages:
    """Images that one of timm's readers finds, such as a folder per class or a Hugging Face dataset.

    timm's own ImageDataset puts another image in the place of one that cannot be read; here that is an error.

    Args:
        reader: timm's.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        names = {index: name for name, index in (reader.class_to_idx or {}).items()}
        self.classes = [str(names[i]) for i in range(len(names))] if sorted(names) == list(range(len(names))) else None

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index]
        with file, Image.open(file) as image:
            return image.convert("RGB"), label

    def filename(self, index: int) -> str:
        return str(self.reader.filename(index, absolute=True))


def read_image(file: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    """One image file, made ready by a transform.

    Raises:
        ValueError: It cannot be read as an image.
    """
    try:
        with Image.open(file) as image:
            return transform(image)
    except (OSError, Image.DecompressionBombError) as error:  # also what is no image: UnidentifiedImageError
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def open_folder(folder: Path) -> ReaderImages:
    """Images in ``FOLDER/CLASS/*``; classes are numbered in the natural order of their names, as in timm.

    Raises:
        FileNotFoundError: The folder is missing or holds no image, or a class has none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.resolve()} does not exist: expected images in {folder}/CLASS/*")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise FileNotFoundError(f"{folder.resolve()} has no class folders: expected images in {folder}/CLASS/*")
    images = ReaderImages(create_reader("", root=str(folder)))
    if empty := sorted(set(names) - set(images.classes or ())):
        raise FileNotFoundError(
            f"{len(empty)} of {len(names)} classes in {folder.resolve()} have no image: {', '.join(empty[:5])}"
            f"{' ...' if len(empty) > 5 else ''}; fill or remove their folders"
        )
    return images


def open_hugging_face(name: str, root: str, split: str) -> ReaderImages:
    """A split of a Hugging Face dataset (``hfds/NAME``, or the path of a local one), kept below ``root``.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed.
        FileNotFoundError: It is neither in ``root`` nor can it be fetched.
    """
    require("datasets", "hf")
    try:
        return ReaderImages(create_reader(name, root=root, split=split))
    except (OSError, ValueError, RuntimeError) as error:  # DatasetNotFoundError is a FileNotFoundError
        raise FileNotFoundError(
            f"{name}, split {split!r}, is not in {Path(root).resolve()} and cannot be fetched: {error}"
        ) from error


def open_stream(name: str, root: str, split: str, *, is_training: bool, batch_size: int, seed: int) -> Any:
    """A split that is read from front to back: ``hfids/NAME`` (Hugging Face) or ``wds/`` (WebDataset shards in root).

    Raises:
        ModuleNotFoundError: ``datasets`` or ``webdataset`` is not installed.
        FileNotFoundError: There is no such split, or it says not how many images it has.
    """
    require(*(("webdataset", "wds") if name.startswith("wds/") else ("datasets", "hf")))
    try:
        return create_dataset(
            name, root=root, split=split, is_training=is_training, batch_size=batch_size, seed=seed
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        expected = "_info.json and the shards it names, or a split such as 'train-{000..099}.tar|IMAGES'"
        where = f"expected {expected} in {Path(root).resolve()}" if name.startswith("wds/") else f"cache: {root}"
        raise FileNotFoundError(f"cannot open {name}, split {split!r}: {error}; {where}") from error


def require(package: str, extra: str) -> None:
    """Say which extra is missing before an import fails somewhere else.

    Raises:
        ModuleNotFoundError: The package cannot be imported.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ModuleNotFoundError(f"this dataset needs the package {package}: pip install 'lightning-tspike[{extra}]'")
