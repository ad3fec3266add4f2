"""The size of images that a network was trained on, where a file says it."""

from __future__ import annotations

from ..files.input_spec import InputSpec
from ..network.spiking_network import SpikingNetwork

__all__ = ["take_image_size"]


def take_image_size(network: SpikingNetwork, preprocessing: InputSpec | None) -> None:
    """Set ``network.input_size`` to that of the images it is for, where they are of its kind and have its channels.

    A network that a name has built has its backbone's own size, which may be many times that: a fold would be verified,
    and its operations counted, on images that the network never sees.
    """
    size = preprocessing.input_size if preprocessing is not None else None
    if size is not None and len(size) == len(network.input_size) and size[0] == network.input_size[0]:
        network.input_size = size
