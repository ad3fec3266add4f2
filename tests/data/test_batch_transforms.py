"""Small images in memory are made ready a batch at a time, and become what they would become one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_tspike.data import ImageDataModule
from lightning_tspike.data.batch_transforms import evaluation_batches, training_batches
from lightning_tspike.data.image_transforms import Cutout
from lightning_tspike.files.input_spec import InputSpec

SPEC = InputSpec((3, 6, 7), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
OPTIONS = {"crop_padding": 2, "crop_fill": "black", "hflip": 0.5, "cutout": 0}


def set_up(folder: Path, channels: int = 3, **options: object) -> ImageDataModule:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    np.savez(folder / "train.npz", x=pixels, y=np.arange(40) % 4)
    np.savez(folder / "test.npz", x=pixels[:10], y=np.arange(10) % 4)
    data = ImageDataModule("npz", str(folder), val_images=8, batch_size=10, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_is_the_same_bit_for_bit(tmp_path: Path, channels: int) -> None:
    data = set_up(tmp_path, channels)
    for part, loader in ((data.test_set, data.test_dataloader()), (data.val_set, data.val_dataloader())):
        assert part.batch_transform is not None
        one_by_one = torch.stack([part[i][0] for i in range(len(part))])
        images = torch.cat([x for x, _ in loader])
        assert torch.equal(images, one_by_one)
        assert images.is_contiguous()
        assert torch.cat([y for _, y in loader]).tolist() == [part[i][1] for i in range(len(part))]


@pytest.mark.parametrize("fill", ["black", "reflect"])
def test_every_crop_is_as_likely(fill: str) -> None:
    """With padding 2 there are 25 crops, each of them mirrored or not: all are found, about as often."""
    torch.manual_seed(0)
    image = torch.randint(256, (1, 6, 7, 3), dtype=torch.uint8)
    augmented = training_batches(SPEC, (6, 7), **OPTIONS | {"crop_fill": fill})
    plain = evaluation_batches(SPEC, (6, 7))
    assert augmented is not None
    assert plain is not None
    padded = F.pad(image.permute(0, 3, 1, 2).float(), [2] * 4, mode="reflect" if fill == "reflect" else "constant")
    padded = padded.to(torch.uint8).permute(0, 2, 3, 1)
    crops = [padded[:, i : i + 6, j : j + 7] for i in range(5) for j in range(5)]
    known = torch.cat([plain(torch.cat([crop, crop.flip(2)])) for crop in crops])
    images = augmented(image.repeat(5000, 1, 1, 1))
    is_same = (images[:, None] == known).flatten(2).all(2)
    assert is_same.sum(1).tolist() == [1] * 5000
    counts = Counter(is_same.int().argmax(1).tolist())
    assert len(counts) == 50
    assert max(abs(count - 100) for count in counts.values()) < 50  # 5 standard deviations


def test_holes_are_as_one_by_one() -> None:
    """Holes of 4 pixels around every place, cut off at the rim, as often as :class:`Cutout` makes each of them."""
    torch.manual_seed(0)
    augmented = training_batches(SPEC, (6, 7), crop_padding=0, crop_fill="black", hflip=0.0, cutout=4)
    assert augmented is not None
    holes = augmented(torch.full((8000, 6, 7, 3), 255, dtype=torch.uint8)) == 0
    assert torch.equal(holes, holes[:, :1].expand_as(holes))
    cutout = Cutout(4)
    one_by_one = torch.stack([cutout(torch.ones(1, 6, 7)) for _ in range(8000)]) == 0
    counts, expected = (Counter(map(str, made[:, 0].int().tolist())) for made in (holes, one_by_one))
    assert counts.keys() == expected.keys()
    assert max(abs(counts[hole] - expected[hole]) / (2 * expected[hole]) ** 0.5 for hole in counts) < 5


def test_images_and_labels_stay_together(tmp_path: Path) -> None:
    data = set_up(tmp_path, crop_padding=0, hflip=0.0)
    part = data.train_set
    assert part.batch_transform is not None
    for (x, y), i in zip(part.__getitems__([5, 0, 31]), [5, 0, 31], strict=True):
        assert torch.equal(x, part[i][0])
        assert y == part[i][1]


def test_what_is_done_one_by_one() -> None:
    assert training_batches(SPEC, (6, 7), **OPTIONS, auto_augment=None) is not None
    assert training_batches(SPEC, (6, 7), **OPTIONS, auto_augment="cifar10") is None
    assert training_batches(SPEC, (6, 7), **OPTIONS | {"crop_padding": None}) is None  # cropped and resized
    assert training_batches(SPEC, (12, 14), **OPTIONS) is None
    assert evaluation_batches(SPEC, (12, 14)) is None
    assert evaluation_batches(InputSpec((3, 6, 7), (0.4,), (0.2,), crop_pct=0.875), (6, 7)) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_seed_and_epoch_decide(tmp_path: Path, num_workers: int) -> None:
    data = set_up(tmp_path, num_workers=num_workers)

    def epoch(number: int) -> torch.Tensor:
        torch.manual_seed(number)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([x for x, _ in loader])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
