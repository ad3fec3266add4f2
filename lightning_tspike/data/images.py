"""Still images by torchvision, read from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Subset
from torchvision import datasets
from torchvision.transforms import v2

from .base import ClassificationDataModule

__all__ = ["ImageDataModule"]

# input size, mean and standard deviation of the training images (each channel in [0, 1]), padding for random crops
_DATASETS: dict[str, tuple[type[Any], list[int], list[float], list[float], int]] = {
    "fashion_mnist": (datasets.FashionMNIST, [1, 28, 28], [0.2860], [0.3530], 2),
    "mnist": (datasets.MNIST, [1, 28, 28], [0.1307], [0.3081], 2),
}
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class ImageDataModule(ClassificationDataModule):
    """Fashion-MNIST or MNIST in torchvision's file layout, batches [B, C, H, W].

    Part of the training images is held out for validation, by a fixed seed; the test set is torchvision's. Training
    images are cropped at random from a padded copy and, but for MNIST, flipped left to right at random.

    Args:
        dataset: ``"fashion_mnist"`` or ``"mnist"``.
        root: Folder that holds the files as torchvision lays them out, e.g. ``ROOT/FashionMNIST/raw/*``.
        download: Let torchvision fetch and unpack the files into ``root`` if they are not there. Archives that are
            there already are only unpacked.
        val_images: Training images held out for validation.
        batch_size: Images per batch on each device.
        num_workers: Loader processes on each device; 0 loads in the training process.

    Raises:
        ValueError: Unknown dataset, or ``val_images`` leaves no training image.
        FileNotFoundError: The files are not in ``root`` and ``download`` is off.
    """

    def __init__(
        self,
        dataset: Literal["fashion_mnist", "mnist"] = "fashion_mnist",
        root: str = "data",
        download: bool = False,
        val_images: int = 5000,
        batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if dataset not in _DATASETS:
            raise ValueError(f"unknown dataset {dataset!r}, expected one of {sorted(_DATASETS)}")
        self.save_hyperparameters()
        self.dataset, self.root, self.download, self.val_images = dataset, root, download, val_images
        self.source, input_size, mean, std, self.padding = _DATASETS[dataset]
        self.num_classes = 10
        self.preprocessing = {"input_size": input_size, "mean": mean, "std": std}

    def prepare_data(self) -> None:
        if self.download:
            for is_train in (True, False):
                self.source(self.root, train=is_train, download=True)

    def setup(self, stage: str) -> None:
        _, *size = self.preprocessing["input_size"]
        normalize = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(self.preprocessing["mean"], self.preprocessing["std"]),
        ]
        augment: list[Any] = [v2.RandomCrop(size, padding=self.padding)]
        if self.dataset != "mnist":
            augment.append(v2.RandomHorizontalFlip())
        train = self._read(True, v2.Compose([*augment, *normalize]))
        held_out = self._read(True, v2.Compose(normalize))
        if not 0 < self.val_images < len(train):
            raise ValueError(f"val_images must lie between 1 and {len(train) - 1}, got {self.val_images!r}")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        self.train_set = Subset(train, order[self.val_images :])
        self.val_set = Subset(held_out, order[: self.val_images])
        self.test_set = self._read(False, v2.Compose(normalize))

    def _read(self, is_train: bool, transform: Any) -> datasets.VisionDataset:
        try:
            return self.source(self.root, train=is_train, transform=transform)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no {self.dataset} in {Path(self.root).resolve() / self.source.__name__ / 'raw'}: expected the files "
                f"{', '.join(_FILES)}; put them there, or let torchvision fetch or unpack them with download=true"
            ) from error
