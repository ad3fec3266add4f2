"""Running trained networks: whole, a time step at a time, and in other programs."""

from .integer_network import IntegerNetwork, IntegerReport, integer

__all__ = ["IntegerNetwork", "IntegerReport", "integer"]
