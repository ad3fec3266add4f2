"""Datamodules: embedded digits, and still images from local folders."""

from .base import ClassificationDataModule
from .digits import DigitsDataModule
from .image_folder import ImageFolderDataModule
from .images import ImageDataModule

__all__ = ["ClassificationDataModule", "DigitsDataModule", "ImageDataModule", "ImageFolderDataModule"]
