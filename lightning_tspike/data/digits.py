"""scikit-learn's digits: 1,797 real images of 8x8 pixels, inside the scikit-learn package, nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..files.input_spec import InputSpec
from .base import ClassificationDataModule
from .samples import Samples

__all__ = ["DigitsDataModule"]

_VAL, _TEST = 180, 360


class DigitsDataModule(ClassificationDataModule):
    """Handwritten digits 0 to 9 [B, 1, 8, 8]: the UCI "Optical Recognition of Handwritten Digits" test set.

    Split once and for all, by a fixed seed: 1,257 train, 180 validation, 360 test images. Training images are shifted
    by up to one pixel.

    Args:
        batch_size: Images per batch on each device.
        num_workers: Loader processes on each device; 0 loads in the training process.
    """

    num_classes = 10

    def __init__(self, batch_size: int = 64, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers)
        self.save_hyperparameters()
        # Mean and standard deviation of all 1,797 images, grey levels scaled to [0, 1].
        self.preprocessing = InputSpec(input_size=(1, 8, 8), mean=(0.3053,), std=(0.3760,)).to_dict()

    def setup(self, stage: str) -> None:
        from sklearn.datasets import load_digits  # here, because only the digits need it

        digits = load_digits()
        self.class_names = [str(name) for name in digits.target_names]
        images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)  # [1797, 1, 8, 8] in [0, 1]
        source = _Arrays(images, digits.target.tolist())
        plain = v2.Normalize(self.preprocessing["mean"], self.preprocessing["std"])
        shifted = v2.Compose([v2.RandomCrop(8, padding=1), plain])
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
        parts = order[:_TEST], order[_TEST : _TEST + _VAL], order[_TEST + _VAL :]
        self.test_set, self.val_set, self.train_set = (
            Samples(source, transform, num_classes=self.num_classes, indices=part)
            for transform, part in zip((plain, plain, shifted), parts, strict=True)
        )


class _Arrays:
    """Images [N, C, H, W] in memory, with labels."""

    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], self.labels[index]
