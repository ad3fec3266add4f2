"""A dataset of images in memory and a transform for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["TransformedArrays"]


class TransformedArrays(Dataset[tuple[Any, int]]):
    """Images [N, C, H, W] with labels; each image goes through ``transform`` when it is asked for."""

    def __init__(self, images: Tensor, labels: Sequence[int], transform: Callable[[Tensor], Any]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), self.labels[index]
