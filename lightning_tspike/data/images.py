"""Still images: torchvision's datasets, folders, npz files, Hugging Face datasets, WebDataset shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from .._options import options_of, save_options, takes
from .._seeding import run_seed
from ..files.input_spec import InputSpec
from .base import ClassificationDataModule
from .batch_transforms import evaluation_batches, training_batches
from .image_sources import Images, ImageSource, Look, PixelSource, StreamSource, find_source
from .image_transforms import evaluation_transform, training_transform
from .options import ImageAugmentation, ImageForm, ImageSplits, Loading
from .samples import Samples, Stream

__all__ = ["ImageDataModule"]


@takes(ImageSplits, ImageForm, ImageAugmentation, Loading)
class ImageDataModule(ClassificationDataModule):
    """Still images, batches [B, C, image_size, image_size], scaled to [0, 1] and normalised.

    ============================  ======================================================  ==============================
    ``dataset``                   files                                                   splits
    ============================  ======================================================  ==============================
    ``cifar10``, ``cifar100``,    as torchvision lays them out below ``root``             train, test
    ``fashion_mnist``, ``mnist``
    ``folder``                    ``ROOT/SPLIT/CLASS/*``, such as ImageNet                train, val
    ``npz``                       ``ROOT/SPLIT.npz`` with ``x`` uint8 [N, H, W, C]        train, test
                                  (C = 1 or 3) and ``y`` [N]
    ``hfds/NAME``                 a Hugging Face dataset with columns image and label,    train, validation
                                  kept below ``root``
    ``hfids/NAME``                the same, streamed                                      train, validation
    ``wds/``                      WebDataset shards in ``root``, described by its         train, validation
                                  ``_info.json``
    ============================  ======================================================  ==============================

    A dataset without validation split gives up ``val_images`` training images for validation, drawn by a fixed seed.
    One without a test split is tested on its validation images, as is usual for ImageNet, whose test labels are not
    public: mind that a checkpoint chosen by them is tested on the images that chose it.

    Streams (``hfids/``, ``wds/``) are for training on many nodes. timm shares their shards out over processes and
    workers, so let the number of shards be a multiple of both; with several processes it evens out their lengths, and
    accuracies are then those of nearly all validation images. Images that cannot be decoded are left out of ``wds/`` by
    timm, with a warning in its log.

    Args:
        dataset: As in the table.
        root: Folder of the files.
        download: Let torchvision fetch and unpack the files into ``root`` if they are not there. Archives that are
            there already are only unpacked.
        num_classes: Number of classes where nothing else says it (streams).
        options: Those of ImageSplits, ImageForm, ImageAugmentation and Loading.

    Raises:
        ValueError: An option is unknown or out of range, or train and validation have different classes.
        FileNotFoundError: Files are missing (the message says which, and where), or a class has no image.
        ModuleNotFoundError: ``datasets`` or ``webdataset`` is not installed.
    """

    def __init__(
        self,
        dataset: str = "fashion_mnist",
        root: str = "data",
        download: bool = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        splits = ImageSplits(**options_of(ImageSplits, options))
        form = ImageForm(**options_of(ImageForm, options))
        augmentation = ImageAugmentation(**options_of(ImageAugmentation, options))
        loading = Loading(**options)
        ClassificationDataModule.__init__(self, **vars(loading))  # not by super(), see save_options
        self.source = find_source(dataset, root)
        given = {"train": splits.train_split, "val": splits.val_split, "test": splits.test_split}
        if self.source.has_fixed_splits and any(given.values()):
            raise ValueError(f"{dataset} has splits of its own: train_split, val_split and test_split are not for it")
        if self.source.splits["val"] is None and splits.val_images < 1:
            raise ValueError(f"val_images must be at least 1, got {splits.val_images!r}")
        self.options: dict[str, Any] = {
            "dataset": dataset,
            "root": root,
            "download": download,
            "num_classes": num_classes,
            **vars(splits),
            **vars(form),
            **vars(augmentation),
            **vars(loading),
        }
        # Lightning logs these next to the module's own and refuses a num_classes that differs from the module's
        save_options(self, self.options, leave_out=["num_classes"] if num_classes is None else [])
        self.splits: dict[str, Any] = {role: given[role] or name for role, name in self.source.splits.items()}
        self.preprocessing = {}
        if self.source.num_classes is not None:
            self.num_classes = self.source.num_classes
        if self.source.look is not None:
            self._set_preprocessing(self.source.look)

    def prepare_data(self) -> None:
        """Fetch what can be fetched, once per machine."""
        if self.options["download"]:
            self.source.download()
        self.source.fetch([split for split in self.splits.values() if split])

    def setup(self, stage: str) -> None:
        source = self.source
        if isinstance(source, StreamSource):
            self._set_up_streams(source)
            return
        train = source.open(self.splits["train"])
        if source.look is None:
            self._set_preprocessing(source.look_of(train))
        if (num_classes := self.options["num_classes"] or source.count_classes(train)) is None:
            raise ValueError(f"{source.dataset} does not say how many classes it has: set num_classes")
        self.num_classes = num_classes
        self.class_names = classes = train.classes
        self._set_up_mixing(self.options["mixup"], self.options["cutmix"])
        held_out: Sequence[int] = range(0)
        indices: Sequence[int] = range(len(train))
        if self.splits["val"] is None:
            count = self.options["val_images"]
            if not 0 < count < len(train):
                raise ValueError(f"val_images must lie between 1 and {len(train) - 1}, got {count!r}")
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
            held_out, indices = order[:count], order[count:]
        self.train_set = self._samples(train, indices, is_training=True)
        self.train_set.mirrors_by_epoch = self.options["alternate_hflip"]
        self.val_set = (
            self._samples(train, held_out)
            if self.splits["val"] is None
            else self._samples(self._evaluated(source, "val", classes))
        )
        self.test_set = self.val_set
        if self.splits["test"] is not None:
            self.test_set = self._samples(self._evaluated(source, "test", classes))

    def _set_up_streams(self, source: StreamSource) -> None:
        if (classes := self.options["num_classes"]) is None:
            raise ValueError(f"a stream does not say how many classes it has: set num_classes for {source.dataset}")
        if self.options["alternate_hflip"]:
            raise ValueError("alternate_hflip needs to know which image is which, and a stream does not say: use hflip")
        self.num_classes = classes
        self._set_up_mixing(self.options["mixup"], self.options["cutmix"])
        augmented, plain = self._transforms()
        self.train_set = self._stream(source, "train", augmented)
        self.val_set = self._stream(source, "val", plain)
        self.test_set = self.val_set if self.splits["test"] is None else self._stream(source, "test", plain)
        if self.on_error == "skip":
            rank_zero_warn("on_error='skip' has no effect on streams: see ImageDataModule for what they do")

    def _stream(self, source: StreamSource, role: str, transform: Callable[[Any], Tensor]) -> Stream:
        images = source.stream(
            self.splits[role], is_training=role == "train", batch_size=self.batch_size, seed=run_seed() or 0
        )
        return Stream(images, transform, num_classes=self.num_classes)

    def _evaluated(self, source: ImageSource, role: str, classes: Sequence[str] | None) -> Images:
        """The validation or test split; its classes must be those of the training split."""
        images = source.open(self.splits[role])
        if images.classes != classes:
            differ = sorted(set(images.classes or ()) ^ set(classes or ()))
            raise ValueError(
                f"{self.splits['train']} and {self.splits[role]} in {self.options['root']} have different classes, "
                f"e.g. {differ[:5]}"
            )
        return images

    def _samples(self, source: Any, indices: Sequence[int] | None = None, *, is_training: bool = False) -> Samples:
        augmented, plain = self._transforms()
        batch_transform = None
        if isinstance(source, PixelSource):
            batch_transform = (
                training_batches(self._input, source.size, **self._augmentation)
                if is_training
                else evaluation_batches(self._input, source.size)
            )
        return Samples(
            source,
            augmented if is_training else plain,
            num_classes=self.num_classes,
            indices=indices,
            batch_transform=batch_transform,
            on_error=self.on_error,
        )

    def _set_preprocessing(self, look: Look) -> None:
        options = self.options
        channels, height, width = look.input_size
        side = options["image_size"]
        statistics = {"mean": list(options["mean"] or look.mean), "std": list(options["std"] or look.std)}
        for name, values in statistics.items():
            if len(values) != channels:
                raise ValueError(f"{name} must have {channels} numbers, one for each channel, got {values}")
        if min(statistics["std"]) <= 0:
            raise ValueError(f"std must be positive, got {statistics['std']}")
        self._input = InputSpec(
            input_size=(channels, side or height, side or width),
            mean=tuple(statistics["mean"]),
            std=tuple(statistics["std"]),
            interpolation=options["interpolation"],
            crop_pct=options["crop_pct"] or look.crop_pct,
        )
        self.preprocessing = self._input.to_dict()
        is_resized = side not in (None, height)
        self._crop_padding = options["crop_padding"]
        if self._crop_padding is None and not is_resized:
            self._crop_padding = look.crop_padding
        self._hflip = look.hflip if options["hflip"] is None else options["hflip"]
        if options["alternate_hflip"]:
            self._hflip = 0.0  # Samples mirrors, by epoch
        self._transforms()  # refuses options that are wrong

    def _transforms(self) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
        """For training and for evaluation."""
        return training_transform(self._input, **self._augmentation), evaluation_transform(self._input)

    @property
    def _augmentation(self) -> dict[str, Any]:
        """What is done to each training image."""
        names = ("crop_fill", "auto_augment", "random_erasing", "cutout")
        return {
            "crop_padding": self._crop_padding,
            "hflip": self._hflip,
            **{name: self.options[name] for name in names},
        }
