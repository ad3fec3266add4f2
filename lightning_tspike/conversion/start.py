"""The first step of a fit that starts from an ANN: calibrate the network on training images, on all processes alike."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from .._batches import images_of
from ..network.spiking_network import SpikingNetwork
from .calibration import calibrate

__all__ = ["start_from", "training_images"]


def start_from(module: L.LightningModule, ann: nn.Module, *, images: int) -> None:
    """Calibrate ``module.network`` on the trainer's first training images; all processes get the first one's result.

    Args:
        module: A module that a trainer is about to train, its network in ``network``.
        ann: What the network starts from.
        images: How many images.

    Raises:
        MisconfigurationException: The strategy shards the weights, or the trainer has no single training loader.
        ValueError: The batches have no still images [B, C, H, W].
    """
    trainer = module.trainer
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise MisconfigurationException(
            f"pretrained= calibrates whole weights, which {type(trainer.strategy).__name__} does not keep; train with "
            "one device or DDP, or begin from a checkpoint of such a run"
        )
    network: SpikingNetwork = module.network  # type: ignore[assignment]
    dtype = next(network.parameters()).dtype
    work = torch.promote_types(dtype, torch.float32)
    x = training_images(trainer, images).to(module.device, work)
    missed = calibrate(network.to(work), ann.to(module.device, work), x)
    network.to(dtype)
    network.load_state_dict(trainer.strategy.broadcast(network.state_dict()))
    worst = max(missed, key=lambda name: missed[name])
    rank_zero_info(
        f"Calibrated on {len(x)} training images: spikes miss between {min(missed.values()):.0%} and "
        f"{missed[worst]:.0%} (layer {worst}) of the variance of the ANN's activations."
    )


def training_images(trainer: L.Trainer, count: int) -> Tensor:
    """The first training images of a fit that starts, [count, C, H, W] or fewer where there are no more.

    Raises:
        MisconfigurationException: There is none.
    """
    parts: list[Tensor] = []
    for batch in trainer.train_dataloader or ():
        parts.append(images_of(batch))
        if sum(map(len, parts)) >= count:
            break
    if not parts:
        raise MisconfigurationException("training images are needed to start from, and the training loader has none")
    return torch.cat(parts)[:count]
