"""From an ANN: its weights as a start, amplitudes and thresholds calibrated on images."""

from .ann import load_ann
from .calibration import calibrate, copy_weights
from .start import start_from

__all__ = ["calibrate", "copy_weights", "load_ann", "start_from"]
