"""An average of the weights, with the batch-norm statistics that belong to it."""

from __future__ import annotations

from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from typing_extensions import override

from .._batches import images_of
from .._strategies import require_whole_weights
from ._common import network_of

__all__ = ["AveragedWeights"]


class AveragedWeights(EMAWeightAveraging):
    """Keep an exponential moving average of the weights: validation, checkpoints and their folded copies have it.

    This is Lightning's EMAWeightAveraging with batch-norm statistics that fit: those of the averaged weights, taken
    from the last training batches before every validation and at the end of every epoch. An average of the statistics
    is that of other weights; and where spikes set in at a threshold, rates do not follow the weights in proportion.
    After the fit, the module has the average, and ``trainer.test``, ``validate`` and ``predict`` take it from a
    checkpoint; what training goes on with is in there as well.

    Args:
        decay: How much of the average each step leaves, in [0, 1): it reaches over about 1 / (1 - decay) steps.
        norm_batches: How many training batches the statistics are taken from. So many are kept on the device. With
            0, the statistics are averaged like the weights.
        update_every_n_steps: Steps from one update of the average to the next.

    Raises:
        MisconfigurationException: A number is out of range, the module has no spiking network in ``network``, or the
            strategy shards the weights.
    """

    def __init__(self, decay: float = 0.999, norm_batches: int = 8, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1:
            raise MisconfigurationException(f"decay must be in [0, 1), got {decay!r}")
        if isinstance(norm_batches, bool) or norm_batches < 0:
            raise MisconfigurationException(f"norm_batches must be a whole number of at least 0, got {norm_batches!r}")
        if update_every_n_steps < 1:
            raise MisconfigurationException(f"update_every_n_steps must be at least 1, got {update_every_n_steps!r}")
        super().__init__(decay=decay, update_every_n_steps=update_every_n_steps)
        self._images: deque[Tensor] = deque(maxlen=norm_batches)
        self._is_measured = True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._images.clear()
        if stage != "fit":
            self._average_model = None  # of a fit before: what runs now is what the module has
            return
        network_of(pl_module, self)
        require_whole_weights(trainer.strategy, "AveragedWeights averages", "leave it out")
        self._device = trainer.strategy.root_device  # where the module itself gets to later
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._images.maxlen:
            self._images.append(images_of(batch))
            self._is_measured = False

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._measure(trainer, pl_module)
        self._images.clear()  # a run that is resumed here has none either

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module)  # not every run ends with an epoch
        super().on_train_end(trainer, pl_module)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # else the average is what the module has loaded
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the averaged network the statistics that it has on the batches seen last, the same in all processes."""
        if self._is_measured or self._average_model is None:
            return
        self._is_measured = True
        module: Any = self._average_model.module
        network = network_of(module, self)
        network.timesteps = network_of(pl_module, self).timesteps  # may have been set since
        dtype = next(network.parameters()).dtype
        with trainer.precision_plugin.forward_context():
            update_bn((images.to(dtype) for images in self._images), network)
        for norm in network.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats:
                for statistics in (norm.running_mean, norm.running_var):
                    assert isinstance(statistics, Tensor)
                    mean: Any = trainer.strategy.reduce(statistics.clone(), reduce_op="mean")
                    statistics.copy_(mean)
