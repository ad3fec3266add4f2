"""Running trained networks: whole, a time step at a time, and in other programs."""

from .integer_network import IntegerNetwork, IntegerReport, integer
from .streaming import Stream, step, stream

__all__ = ["IntegerNetwork", "IntegerReport", "Stream", "integer", "step", "stream"]
