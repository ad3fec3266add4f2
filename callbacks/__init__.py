"""Lightning callbacks that watch a ternary-spike network and export its folded copy."""

from .amplitude import AmplitudeLogger
from .checkpoints import BestCheckpoint, LastCheckpoint
from .energy import EnergyMonitor
from .firing_rate import FiringRateMonitor
from .fold_export import FoldExport
from .membrane import MembraneHistogram
from .prediction import PredictionWriter

__all__ = [
    "AmplitudeLogger",
    "BestCheckpoint",
    "EnergyMonitor",
    "FiringRateMonitor",
    "FoldExport",
    "LastCheckpoint",
    "MembraneHistogram",
    "PredictionWriter",
]
