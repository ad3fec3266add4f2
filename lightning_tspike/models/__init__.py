"""Backbones of our own, registered with timm on import, and the one place where networks are built by name."""

from . import ms_resnet, resnet, sew_resnet, vgg
from .ann import load_ann
from .create import NetworkConfig, check_name, create_network

__all__ = ["NetworkConfig", "check_name", "create_network", "load_ann", "ms_resnet", "resnet", "sew_resnet", "vgg"]
