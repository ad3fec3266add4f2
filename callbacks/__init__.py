"""Lightning callbacks that watch a ternary-spike network and export its folded copy."""

from .amplitude import AmplitudeLogger
from .fold_export import FoldExport
from .membrane import MembraneHistogram
from .prediction import PredictionWriter

__all__ = ["AmplitudeLogger", "FoldExport", "MembraneHistogram", "PredictionWriter"]
