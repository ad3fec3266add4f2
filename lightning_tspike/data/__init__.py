"""Datamodules: embedded digits, still images, event recordings."""

from .base import ClassificationDataModule
from .digits import DigitsDataModule
from .events import EventDataModule
from .images import ImageDataModule
from .samples import DataError

__all__ = ["ClassificationDataModule", "DataError", "DigitsDataModule", "EventDataModule", "ImageDataModule"]
