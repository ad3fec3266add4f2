"""Log the distribution of each layer's membrane potential before firing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from .._observe import observing
from ..functional import per_channel
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from ..surrogate import SURROGATES
from ._common import BatchWatcher, run_folder, write_json

__all__ = ["MembraneHistogram"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class _Histogram(NamedTuple):
    """Of one layer's membrane potential, in thresholds."""

    counts: NDArray[np.float64]  # [bins]
    edges: NDArray[np.float64]  # [bins + 1]
    fires: float
    no_gradient: float

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return self._asdict() | {"counts": self.counts.tolist(), "edges": self.edges.tolist()}

    def quantile(self, q: float) -> float:
        """Interpolated within a bin."""
        cumulative = np.concatenate([[0.0], self.counts.cumsum()]) / self.counts.sum()
        return float(np.interp(q, cumulative, self.edges))


class MembraneHistogram(BatchWatcher):
    """Histogram of the membrane potential u of every neuron layer, over a training batch every n steps.

    All in units of the layer's threshold, so that a neuron fires where |u| >= 1. Counted on the network's device in
    bins of equal width from ``-span`` to ``span``; what lies beyond is counted in the outermost bins. Only on the
    batches that are looked at does a hook look at each layer. With several processes it is the first one's batch.

    TensorBoard and W&B get the histogram ``membrane/<layer>``; every other logger gets its quantiles, interpolated
    within a bin, as ``membrane/<layer>/q05`` to ``q95``. All get two shares as scalars:

    * ``membrane/<layer>/fires``: |u| >= 1 (u >= 1 for binary neurons),
    * ``membrane/<layer>/no_gradient``: the surrogate gradient is 0; |u| >= 2 for the default one.

    The first and the latest histograms are in ``membrane.json`` in the run's folder, for ``tspike report``; the first
    one is kept in checkpoints, so that a resumed run still has it.

    Args:
        every_n_steps: Look at one training batch every n optimizer steps; by default as often as the trainer logs.
        bins: Number of bins.
        span: Reach of the bins, in thresholds.

    Raises:
        MisconfigurationException: An option is out of range, the trainer has no logger, or the module has no spiking
            network in ``network``.
    """

    def __init__(self, every_n_steps: int | None = None, bins: int = 96, span: float = 6.0) -> None:
        super().__init__(every_n_steps)
        if bins < 2:
            raise MisconfigurationException(f"bins must be at least 2, got {bins!r}")
        if span <= 2:
            raise MisconfigurationException(f"span must be above 2, the reach of the surrogate gradient; got {span!r}")
        self.bins, self.span = bins, span
        self._first: dict[str, Any] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._first = None  # before a checkpoint's is loaded, where a run is resumed

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first = state_dict["first"]

    @override
    @contextmanager
    def watch(self, network: SpikingNetwork) -> Iterator[dict[str, _Histogram]]:
        sums: dict[str, Tensor] = {}  # bins..., fires, no gradient, all: shape [bins + 3]
        histograms: dict[str, _Histogram] = {}

        @torch.no_grad()
        def look(name: str, neuron: SpikingNeuron, x: Tensor, _spikes: Tensor) -> None:
            new = self._count(neuron, neuron.membrane_potential(x))
            sums[name] = sums[name] + new if name in sums else new  # called more than once

        with observing(network.neurons(), look):
            yield histograms
        edges = np.linspace(-self.span, self.span, self.bins + 1)
        for name, tensor in sums.items():
            *counts, fires, no_gradient, total = tensor.tolist()
            histograms[name] = _Histogram(np.array(counts), edges, fires / total, no_gradient / total)

    @override
    def record(self, trainer: Trainer, seen: dict[str, _Histogram], step: int) -> None:
        for logger in trainer.loggers:
            _log(logger, seen, step)
        content = {"step": step, "layers": {name: histogram.to_dict() for name, histogram in seen.items()}}
        self._first = self._first or content
        write_json(run_folder(trainer) / "membrane.json", {"first": self._first, "last": content})

    def _count(self, neuron: SpikingNeuron, u: Tensor) -> Tensor:
        u = (u / per_channel(neuron.firing_threshold, u)).float()
        counts = torch.histc(u.clamp(-self.span, self.span), self.bins, -self.span, self.span)
        fires = (u.abs() if neuron.is_ternary else u) >= 1
        gradient = SURROGATES[neuron.surrogate](u, torch.ones((), device=u.device), neuron.is_ternary)
        beyond = torch.stack([fires.sum(), (gradient == 0).sum(), torch.tensor(u.numel(), device=u.device)])
        return torch.cat([counts.double(), beyond.double()])


def _log(logger: Logger, seen: dict[str, _Histogram], step: int) -> None:
    metrics: dict[str, Any] = {}
    for name, histogram in seen.items():
        tag = f"membrane/{name}"
        metrics[f"{tag}/fires"], metrics[f"{tag}/no_gradient"] = histogram.fires, histogram.no_gradient
        if isinstance(logger, TensorBoardLogger):
            _add_to_tensorboard(logger, tag, histogram, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            metrics[tag] = wandb.Histogram(np_histogram=(histogram.counts, histogram.edges))
        else:
            metrics |= {f"{tag}/q{100 * q:02.0f}": histogram.quantile(q) for q in _QUANTILES}
    logger.log_metrics(metrics, step=step)


def _add_to_tensorboard(logger: TensorBoardLogger, tag: str, histogram: _Histogram, step: int) -> None:
    counts, edges = histogram.counts, histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    logger.experiment.add_histogram_raw(
        tag,
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * centres).sum(),
        sum_squares=(counts * centres**2).sum(),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )
