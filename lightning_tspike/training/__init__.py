"""Training with Lightning: the module, its losses and schedules."""

from .losses import distillation_loss, membrane_regularization, tet_loss
from .module import TernarySNNModule

__all__ = ["TernarySNNModule", "distillation_loss", "membrane_regularization", "tet_loss"]
