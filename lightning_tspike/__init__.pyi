from . import analysis as analysis
from . import callbacks as callbacks
from . import conversion as conversion
from . import data as data
from . import functional as functional
from . import inference as inference
from . import kernels as kernels
from . import models as models
from . import neurons as neurons
from . import surrogate as surrogate
from . import zoo as zoo
from .folding import FoldReport as FoldReport
from .folding import fold as fold
from .network import NetworkConfig as NetworkConfig
from .network import SpikingNetwork as SpikingNetwork
from .network import ternarize as ternarize
from .neurons import TernaryLIF as TernaryLIF
from .training import TernarySNNModule as TernarySNNModule

__all__ = [
    "FoldReport",
    "NetworkConfig",
    "SpikingNetwork",
    "TernaryLIF",
    "TernarySNNModule",
    "analysis",
    "callbacks",
    "conversion",
    "data",
    "fold",
    "functional",
    "inference",
    "kernels",
    "models",
    "neurons",
    "surrogate",
    "ternarize",
    "zoo",
]
__version__: str
