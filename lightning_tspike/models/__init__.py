"""Backbones of our own, registered with timm on import, and the one place where networks are built by name."""

from . import fast_resnet, max_resnet, ms_resnet, resnet, sew_resnet, vgg
from .create import check_name, create_network
from .official import OfficialError, import_official

__all__ = [
    "OfficialError",
    "check_name",
    "create_network",
    "fast_resnet",
    "import_official",
    "max_resnet",
    "ms_resnet",
    "resnet",
    "sew_resnet",
    "vgg",
]
