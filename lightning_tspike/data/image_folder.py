"""Images in one folder per class, such as ImageNet."""

from __future__ import annotations

from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.datasets import ImageFolder

from .base import ClassificationDataModule

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(ClassificationDataModule):
    """Files ``ROOT/train/CLASS/*`` and ``ROOT/val/CLASS/*``, batches [B, 3, image_size, image_size].

    Training images are cropped and flipped at random (timm's standard transform), the others resized and cropped at
    the centre. The images in ``val`` serve for validation and for the test, as is usual for ImageNet, whose test
    labels are not public: mind that a checkpoint chosen by them is tested on the images that chose it.

    Args:
        root: Folder that holds ``train`` and ``val``.
        image_size: Height and width after cropping, in pixels.
        crop_pct: Share of the shorter side that the centre crop keeps.
        batch_size: Images per batch on each device.
        num_workers: Loader processes on each device.

    Raises:
        FileNotFoundError: A folder is missing or holds no images, or a class folder is empty.
        ValueError: ``train`` and ``val`` have different classes.
    """

    def __init__(
        self, root: str, image_size: int = 224, crop_pct: float = 0.875, batch_size: int = 32, num_workers: int = 8
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.save_hyperparameters()
        self.root, self.image_size, self.crop_pct = root, image_size, crop_pct
        self.preprocessing = {
            "input_size": [3, image_size, image_size],
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
        }

    def setup(self, stage: str) -> None:
        train, val = self._read("train", is_training=True), self._read("val", is_training=False)
        if train.classes != val.classes:
            differ = sorted(set(train.classes) ^ set(val.classes))
            raise ValueError(f"train and val in {self.root} have different classes, e.g. {differ[:5]}")
        self.train_set, self.val_set, self.test_set = train, val, val
        self.num_classes = len(train.classes)

    def _read(self, split: str, *, is_training: bool) -> ImageFolder:
        folder = Path(self.root) / split
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder.resolve()} does not exist: expected images in {folder}/CLASS/*")
        transform = create_transform(
            self.image_size,
            is_training=is_training,
            color_jitter=0.0,
            crop_pct=self.crop_pct,
            interpolation="bilinear",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        )
        return ImageFolder(str(folder), transform=transform)
