"""What a training step keeps in memory for its backward pass."""

from .keeping import MEMORY_MODES, MemoryMode, keeping

__all__ = ["MEMORY_MODES", "MemoryMode", "keeping"]
