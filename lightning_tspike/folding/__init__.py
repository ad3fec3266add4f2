"""The fold: learned amplitudes become part of weights and thresholds, exactly."""

from .absorb import FoldError, fold, verify
from .report import FoldedNeuron, FoldReport, LayerInput

__all__ = ["FoldError", "FoldReport", "FoldedNeuron", "LayerInput", "fold", "verify"]
