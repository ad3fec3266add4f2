"""Spiking networks: what becomes of a model when its activations become neurons."""

from .config import NetworkConfig
from .early_exit import Decision
from .report import NetworkReport, NeuronInfo
from .spiking_network import SpikingNetwork
from .swapping import ternarize

__all__ = ["Decision", "NetworkConfig", "NetworkReport", "NeuronInfo", "SpikingNetwork", "ternarize"]
