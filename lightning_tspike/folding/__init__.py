"""The fold: learned amplitudes become part of weights and thresholds, exactly."""

from .absorb import fold
from .report import FoldedNeuron, FoldReport, LayerInput
from .verification import FoldError, verify

__all__ = ["FoldError", "FoldReport", "FoldedNeuron", "LayerInput", "fold", "verify"]
