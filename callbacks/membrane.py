"""Log the distribution of each layer's membrane potential before firing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from ..functional import per_channel
from ..neurons import SpikingNeuron
from ..surrogate import SURROGATES
from ._common import check_every_n_steps, is_log_step, network_of, require_logger

__all__ = ["MembraneHistogram"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class MembraneHistogram(Callback):
    """Histogram of the membrane potential u of every neuron layer, over a training batch every n steps.

    All in units of the layer's threshold, so that a neuron fires where |u| >= 1. Counted on the network's device in
    bins of equal width from ``-span`` to ``span``; what lies beyond is counted in the outermost bins. Only on the
    batches that are looked at does a hook look at each layer. With several processes it is the first one's batch.

    TensorBoard gets the histogram ``membrane/<layer>``; every other logger gets its quantiles, interpolated within a
    bin, as ``membrane/<layer>/q05`` to ``q95``. All get two shares as scalars:

    * ``membrane/<layer>/fires``: |u| >= 1 (u >= 1 for binary neurons),
    * ``membrane/<layer>/no_gradient``: the surrogate gradient is 0; |u| >= 2 for the default one.

    Args:
        every_n_steps: Look at one training batch every n optimizer steps; by default as often as the trainer logs.
        bins: Number of bins.
        span: Reach of the bins, in thresholds.

    Raises:
        MisconfigurationException: An option is out of range, the trainer has no logger, or the module has no spiking
            network in ``network``.
    """

    def __init__(self, every_n_steps: int | None = None, bins: int = 96, span: float = 6.0) -> None:
        self.every_n_steps = check_every_n_steps(every_n_steps)
        if bins < 2:
            raise MisconfigurationException(f"bins must be at least 2, got {bins!r}")
        if span <= 2:
            raise MisconfigurationException(f"span must be above 2, the reach of the surrogate gradient; got {span!r}")
        self.bins, self.span = bins, span
        self._counts: dict[str, Tensor] = {}  # bins..., fires, no gradient, all: shape [bins + 3]
        self._handles: list[RemovableHandle] = []
        self._last_step = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_logger(trainer, self)
        network_of(pl_module, self)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        is_due = trainer.global_step != self._last_step and is_log_step(trainer, self.every_n_steps)
        if trainer.is_global_zero and is_due:
            self._last_step = trainer.global_step
            for name, neuron in network_of(pl_module, self).neurons().items():
                self._handles.append(neuron.register_forward_hook(self._count(name)))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._handles:
            self._remove_hooks()
            for logger in trainer.loggers:
                self._log(logger)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _count(self, name: str) -> Callable[[SpikingNeuron, tuple[Tensor, ...], Tensor], None]:
        self._counts.pop(name, None)

        @torch.no_grad()
        def hook(neuron: SpikingNeuron, args: tuple[Tensor, ...], _output: Tensor) -> None:
            u = neuron.membrane_potential(args[0])
            u = (u / per_channel(neuron.firing_threshold, u)).float()
            counts = torch.histc(u.clamp(-self.span, self.span), self.bins, -self.span, self.span)
            fires = (u.abs() if neuron.is_ternary else u) >= 1
            gradient = SURROGATES[neuron.surrogate](u, torch.ones((), device=u.device), neuron.is_ternary)
            beyond = torch.stack([fires.sum(), (gradient == 0).sum(), torch.ones_like(u).sum()])
            new = torch.cat([counts, beyond]).double()
            self._counts[name] = self._counts[name] + new if name in self._counts else new  # called more than once

        return hook

    def _log(self, logger: Logger) -> None:
        scalars = {}
        for name, tensor in self._counts.items():
            *counts, fires, no_gradient, total = tensor.tolist()
            scalars[f"membrane/{name}/fires"] = fires / total
            scalars[f"membrane/{name}/no_gradient"] = no_gradient / total
            if isinstance(logger, TensorBoardLogger):
                self._add_histogram(logger, f"membrane/{name}", np.array(counts))
            else:
                scalars |= {
                    f"membrane/{name}/q{100 * q:02.0f}": u for q, u in self._quantiles(np.array(counts)).items()
                }
        logger.log_metrics(scalars, step=self._last_step)

    def _add_histogram(self, logger: TensorBoardLogger, tag: str, counts: NDArray[np.float64]) -> None:
        edges = self._edges()
        centres = (edges[:-1] + edges[1:]) / 2
        logger.experiment.add_histogram_raw(
            tag,
            min=-self.span,
            max=self.span,
            num=counts.sum(),
            sum=(counts * centres).sum(),
            sum_squares=(counts * centres**2).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=self._last_step,
        )

    def _quantiles(self, counts: NDArray[np.float64]) -> dict[float, float]:
        cumulative = np.concatenate([[0.0], counts.cumsum()]) / counts.sum()
        return {q: float(np.interp(q, cumulative, self._edges())) for q in _QUANTILES}

    def _edges(self) -> NDArray[np.float64]:
        return np.linspace(-self.span, self.span, self.bins + 1)
