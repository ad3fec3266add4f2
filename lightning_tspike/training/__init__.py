"""Training with Lightning: the module, its losses and schedules."""

from .losses import distillation_loss, membrane_regularization, tet_loss
from .module import TernarySNNModule
from .synaptic_cost import SynapticOperations, synaptic_cost

__all__ = [
    "SynapticOperations",
    "TernarySNNModule",
    "distillation_loss",
    "membrane_regularization",
    "synaptic_cost",
    "tet_loss",
]
