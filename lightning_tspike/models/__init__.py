"""Backbones of our own, registered with timm on import, and the one place where networks are built by name."""

from . import fast_resnet, max_resnet, ms_resnet, resnet, sew_resnet, vgg
from .create import check_name, create_network
from .foreign import ForeignWeightsError
from .official import import_official
from .spikingjelly import JellyNeuron, import_spikingjelly

__all__ = [
    "ForeignWeightsError",
    "JellyNeuron",
    "check_name",
    "create_network",
    "fast_resnet",
    "import_official",
    "import_spikingjelly",
    "max_resnet",
    "ms_resnet",
    "resnet",
    "sew_resnet",
    "vgg",
]
