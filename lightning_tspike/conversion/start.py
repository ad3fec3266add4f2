"""What a fit may begin with: a network is fitted to an ANN or to a firing rate on training images, on all processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from .._batches import first_images
from .._strategies import require_whole_weights
from .._waiting import waiting
from ..network.spiking_network import SpikingNetwork
from .calibration import calibrate
from .initial_rate import set_firing_rate

__all__ = ["start_at_rate", "start_from", "training_images"]


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
    missed, count = _on_training_images(
        module, images, "pretrained", lambda network, x: calibrate(network, ann.to(x.device, x.dtype), x)
    )
    worst = max(missed, key=lambda name: missed[name])
    rank_zero_info(
        f"Calibrated on {count} training images: spikes miss between {min(missed.values()):.0%} and "
        f"{missed[worst]:.0%} (layer {worst}) of the variance of the ANN's activations."
    )


def start_at_rate(module: L.LightningModule, rate: float, *, images: int) -> None:
    """Set the thresholds of ``module.network`` by :func:`set_firing_rate`; otherwise as :func:`start_from`.

    Args:
        module: A module that a trainer is about to train, its network in ``network``.
        rate: Share of (neuron, time step, sample) triples that are to fire, in every layer.
        images: How many images or sequences of frames.

    Raises:
        MisconfigurationException: As for :func:`start_from`.
    """
    rates, count = _on_training_images(
        module, images, "initial_rate", lambda network, x: set_firing_rate(network, x, rate)
    )
    low, high = (choose(rates, key=lambda name: rates[name]) for choose in (min, max))
    rank_zero_info(
        f"Thresholds set on {count} training images: layers fire at rates from {rates[low]:.3f} ({low}) to "
        f"{rates[high]:.3f} ({high})."
    )


def _on_training_images(
    module: L.LightningModule,
    count: int,
    option: str,
    change: Callable[[SpikingNetwork, Tensor], dict[str, float]],
) -> tuple[dict[str, float], int]:
    """Change the network by the first training images, in single precision or more; the first process's result counts.

    Args:
        module: As for :func:`start_from`.
        count: How many images.
        option: What asks for it, for messages.
        change: Changes the network in place and says something of every layer.

    Returns:
        What it said, and how many images there were.
    """
    trainer = module.trainer
    require_whole_weights(trainer.strategy, f"{option}= changes", "begin from a checkpoint of such a run")
    network: SpikingNetwork = module.network  # type: ignore[assignment]
    dtype = next(network.parameters()).dtype
    work = torch.promote_types(dtype, torch.float32)
    x = training_images(trainer, count, f"{option}=").to(module.device, work)
    with waiting(f"fitting layers to {len(x)} training images") if trainer.is_global_zero else nullcontext():
        found = change(network.to(work), x)
    network.to(dtype)
    network.load_state_dict(trainer.strategy.broadcast(network.state_dict()))
    return found, len(x)


def training_images(trainer: L.Trainer, count: int, asker: str) -> Tensor:
    """The first training images of a fit that starts.

    Args:
        trainer: It is about to train.
        count: How many images; fewer where there are no more.
        asker: Who asks for them, for messages.

    Returns:
        [count, C, H, W], or frames [count, T, C, H, W].

    Raises:
        MisconfigurationException: There is none.
    """
    images = first_images(trainer.train_dataloader or (), count)
    if images is None:
        raise MisconfigurationException(f"{asker} looks at training images, and the training loader has none")
    return images
