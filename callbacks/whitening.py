"""A first convolution that whitens patches of the images: the training images say what it is, and it is not trained."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from ..conversion.start import training_images
from ._common import network_of

__all__ = ["WhitenedConvolution", "whitening_filters"]


class WhitenedConvolution(Callback):
    """Sets the first convolution to whitening filters when a fit starts, and keeps it as it is.

    Whitened inputs are what makes the first epochs count in the fastest recipes for CIFAR-10 (Jordan 2024,
    arXiv 2404.00498; Page 2019). As the layer comes before the first neuron, it runs once for all time steps.

    Args:
        images: Training images that the filters are computed from.
        layer: The convolution's name in ``network.model``; None for the first one.

    Raises:
        ValueError: ``images`` is not positive.
        MisconfigurationException: When a fit starts: the layer is no convolution of the images, or has more filters
            than there are.
    """

    def __init__(self, images: int = 5000, layer: str | None = None) -> None:
        if images < 1:
            raise ValueError(f"images must be at least 1, got {images!r}")
        self.images, self.layer = images, layer

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # before the optimizer takes parameters up
            self._convolution(pl_module).requires_grad_(False)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:  # a run that is resumed has its filters
            return
        convolution = self._convolution(pl_module)
        filters = whitening_filters(
            training_images(trainer, self.images, "WhitenedConvolution"), convolution.kernel_size
        )
        if len(filters) < len(convolution.weight):
            raise MisconfigurationException(
                f"{len(convolution.weight)} whitening filters are asked for, and patches of "
                f"{convolution.in_channels} x {convolution.kernel_size} have {len(filters)}: give the convolution "
                "fewer channels or a larger kernel"
            )
        filters = trainer.strategy.broadcast(filters[: len(convolution.weight)])
        with torch.no_grad():
            convolution.weight.copy_(filters)

    def _convolution(self, module: LightningModule) -> nn.Conv2d:
        model = network_of(module, self).model
        convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        name = self.layer or next(iter(convolutions), None)
        if name not in convolutions or convolutions[name].groups != 1:
            raise MisconfigurationException(
                f"WhitenedConvolution needs a convolution of whole images, and {name!r} is none; there are "
                f"{', '.join(convolutions)}"
            )
        return convolutions[name]


def whitening_filters(images: Tensor, kernel_size: tuple[int, ...], *, epsilon: float = 5e-4) -> Tensor:
    """Filters whose responses to patches of the images are uncorrelated and of unit variance, the strongest first.

        C = E[p p^T] = V diag(l) V^T,   w_i = v_i / sqrt(l_i + epsilon)

    with patches p as vectors. (Recipes with an activation behind them have their negatives as well.)

    Args:
        images: [N, C, H, W].
        kernel_size: (height, width) of a patch.
        epsilon: Keeps filters of hardly any variance from growing, in units of the images' variance.

    Returns:
        Filters [C * height * width, C, height, width], float32.
    """
    height, width = kernel_size
    patches = images.float().unfold(2, height, 1).unfold(3, width, 1)  # [N, C, H', W', height, width]
    vectors = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * height * width).double()
    values, directions = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    filters = (directions / (values + epsilon).sqrt()).T.flip(0)  # eigh has the weakest first
    return filters.reshape(-1, images.shape[1], height, width).float()
