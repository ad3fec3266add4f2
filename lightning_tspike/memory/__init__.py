"""What a training step keeps in memory for its backward pass.

A ternary spike says one of three things, so two bits hold it exactly, where a float takes 32. ``memory`` on the module
and on :class:`lightning_tspike.SpikingNetwork` says what becomes of that:

============ ==========================================================================================================
``"full"``   Every layer keeps its input as it is.
``"packed"`` Whatever keeps spikes for its backward pass (a convolution or linear layer for its weights' gradient, a
             pool for its own) keeps them at 2 bits each, unpacked when they are needed: the same numbers.
``"lean"``   In addition a block of layers keeps its input alone, packed where that is spikes, and is computed again in
             the backward pass. Batch norms move their running statistics once, random numbers are drawn again as they
             were. What would make that another computation is refused: weights that were changed in between, layers
             that were switched between training and evaluation, ``torch.func.functional_call``.
============ ==========================================================================================================
"""

from .keeping import MEMORY_MODES, MemoryMode, keeping, set_up

__all__ = ["MEMORY_MODES", "MemoryMode", "keeping", "set_up"]
