"""Lightning callbacks that observe a ternary-spike network, steer its training and export its folded copy."""

from .amplitude import AMPLITUDES, AmplitudeLogger
from .averaging import AveragedWeights
from .checkpoints import BestCheckpoint, LastCheckpoint
from .energy import ENERGY, EnergyMonitor
from .firing_rate import FIRING_RATES, FiringRateMonitor
from .fold_export import FoldExport
from .fold_section import FOLD
from .guard import GuardError, TrainingGuard
from .membrane import MEMBRANE_POTENTIALS, MembraneHistogram
from .prediction import PredictionWriter
from .timestep_schedule import TimestepSchedule
from .whitening import WhitenedConvolution

__all__ = [
    "REPORT_SECTIONS",
    "AmplitudeLogger",
    "AveragedWeights",
    "BestCheckpoint",
    "EnergyMonitor",
    "FiringRateMonitor",
    "FoldExport",
    "GuardError",
    "LastCheckpoint",
    "MembraneHistogram",
    "PredictionWriter",
    "TimestepSchedule",
    "TrainingGuard",
    "WhitenedConvolution",
]

REPORT_SECTIONS = (AMPLITUDES, MEMBRANE_POTENTIALS, FIRING_RATES, ENERGY, FOLD)
"""What ``tspike report`` shows after the learning curves, in this order; each is declared beside its callback."""
