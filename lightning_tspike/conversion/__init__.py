"""What a network starts from: an ANN's weights, amplitudes and thresholds calibrated on images, or a firing rate."""

from .ann import load_ann
from .calibration import calibrate, copy_weights
from .initial_rate import set_firing_rate
from .start import start_at_rate, start_from

__all__ = ["calibrate", "copy_weights", "load_ann", "set_firing_rate", "start_at_rate", "start_from"]
