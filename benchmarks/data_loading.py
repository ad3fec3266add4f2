"""Images per second of ImageDataModule against a bare loader by timm and torchvision, in turn, on the same cores.

    python -m benchmarks.data_loading [IMAGES] [PAIRS]

* photos: IMAGES (600) JPEG files of 500x375 pixels in folders, cropped at random and resized to 224x224, mirrored; the
  bare loader is timm's ``create_loader`` on timm's ``create_dataset``;
* small: 20 * IMAGES arrays of 32x32 pixels, cropped with padding 4, mirrored; the bare loader is torch's DataLoader
  with torchvision's transforms, on arrays in memory as in torchvision's CIFAR10.

Both are read whole, shuffled, by 0 and by 2 worker processes. The median over PAIRS (7) of the ratios, ours over
theirs, goes with the machine to benchmarks/results/data_loading.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lightning_tspike.data import ImageDataModule

RESULTS = Path(__file__).parent / "results" / "data_loading.json"
BATCH = 64


class _Arrays(Dataset[Any]):
    """Images in memory, as torchvision's CIFAR10 keeps them."""

    def __init__(self, x: np.ndarray, y: np.ndarray, transform: Any) -> None:
        self.x, self.y, self.transform = x, y, transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.x[index])), int(self.y[index])


def main(images: int = 600, pairs: int = 7) -> None:
    """Measure all and write the results."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, prepare in (("photos", _photos), ("small", _small)):
            ours, bare = prepare(Path(folder) / name, images)
            for num_workers in (0, 2):
                _read(ours(num_workers)), _read(bare(num_workers))  # once for the file cache
                runs = [(_read(ours(num_workers)), _read(bare(num_workers))) for _ in range(pairs)]
                ratios = sorted(one / other for one, other in runs)
                rows.append(
                    {
                        "images": name,
                        "workers": num_workers,
                        "images per second, bare": round(statistics.median(other for _, other in runs), 1),
                        "ratios": [round(ratio, 4) for ratio in ratios],
                        "median ratio": round(statistics.median(ratios), 4),
                    }
                )
                print(rows[-1], flush=True)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    machine = {**versions, "machine": platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _read(loader: Any) -> float:
    """Images per second of one epoch."""
    start, count = time.perf_counter(), 0
    for x, _ in loader:
        count += len(x)
    return count / (time.perf_counter() - start)


def _photos(folder: Path, images: int) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 2)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count // 2):
                blurred = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)).resize((500, 375))
                blurred.save(folder / split / label / f"{i}.jpg", quality=90)

    def ours(num_workers: int) -> Any:
        data = ImageDataModule("folder", root=str(folder), batch_size=BATCH, num_workers=num_workers)
        data.setup("fit")
        return data.train_dataloader()

    def bare(num_workers: int) -> Any:
        return create_loader(
            create_dataset("", root=str(folder / "train"), is_training=True),
            (3, 224, 224),
            BATCH,
            is_training=True,
            use_prefetcher=False,
            color_jitter=None,
            interpolation="bilinear",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            num_workers=num_workers,
            persistent_workers=False,
        )

    return ours, bare


def _small(folder: Path, images: int) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    count = 20 * images
    x, y = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count)
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", x=x, y=y)

    def ours(num_workers: int) -> Any:
        data = ImageDataModule(
            "npz", root=str(folder), val_images=1, batch_size=BATCH, num_workers=num_workers, crop_padding=4
        )
        data.setup("fit")
        return data.train_dataloader()

    def bare(num_workers: int) -> Any:
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.29, 0.29, 0.29)),
            ]
        )
        return DataLoader(_Arrays(x, y, transform), BATCH, shuffle=True, num_workers=num_workers)

    return ours, bare


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
