"""scikit-learn's digits: 1,797 real images of 8x8 pixels, inside the scikit-learn package, nothing to download."""

from __future__ import annotations

import torch
from torch.utils.data import Subset
from torchvision.transforms import v2

from .base import ClassificationDataModule
from .transformed import TransformedArrays

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
        self.preprocessing = {"input_size": [1, 8, 8], "mean": [0.3053], "std": [0.3760]}

    def setup(self, stage: str) -> None:
        from sklearn.datasets import load_digits  # here, because only the digits need it

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)  # [1797, 1, 8, 8] in [0, 1]
        labels = digits.target.tolist()
        normalize = v2.Normalize(self.preprocessing["mean"], self.preprocessing["std"])
        plain = TransformedArrays(images, labels, normalize)
        shifted = TransformedArrays(images, labels, v2.Compose([v2.RandomCrop(8, padding=1), normalize]))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
        self.test_set = Subset(plain, order[:_TEST])
        self.val_set = Subset(plain, order[_TEST : _TEST + _VAL])
        self.train_set = Subset(shifted, order[_TEST + _VAL :])
