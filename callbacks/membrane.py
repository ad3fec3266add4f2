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
from ..analysis.figures import plot_histograms
from ..analysis.run_logs import ReportError, RunLogs
from ..analysis.sections import LINES, LayerTag, ReportSection, SectionContent, evenly_chosen, left_out
from ..functional import per_channel
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from ..surrogate import SURROGATES
from ._common import BatchObserver
from .run_files import run_folder, write_json

__all__ = ["MEMBRANE_POTENTIALS", "MembraneHistogram"]

_MEMBRANE = LayerTag("membrane")
_FILE = "membrane.json"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_BINS = 1000  # that a page can draw


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


class MembraneHistogram(BatchObserver):
    """Histogram of the membrane potential u of every neuron layer, over a training batch every n steps.

    All in units of the layer's threshold, so that a neuron fires where |u| >= 1. Counted on the network's device in
    bins of equal width from ``-span`` to ``span``; what lies beyond is counted in the outermost bins. Layers
    have hooks only on the batches that are observed. With several processes it is the first one's batch.

    TensorBoard and W&B get the histogram ``membrane/<layer>``; every other logger gets its quantiles, interpolated
    within a bin, as ``membrane/<layer>/q05`` to ``q95``. All get two shares as scalars:

    * ``membrane/<layer>/fires``: |u| >= 1 (u >= 1 for binary neurons),
    * ``membrane/<layer>/no_gradient``: the surrogate gradient is 0; |u| >= 2 for the default one.

    The first and the latest histograms are in ``membrane.json`` in the run's folder, for ``tspike report``; the first
    one is kept in checkpoints, so that a resumed run still has it.

    Args:
        every_n_steps: Observe one training batch every n optimizer steps; by default as often as the trainer logs.
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
    def observe(self, network: SpikingNetwork) -> Iterator[dict[str, _Histogram]]:
        sums: dict[str, Tensor] = {}  # bins..., fires, no gradient, all: shape [bins + 3]
        histograms: dict[str, _Histogram] = {}

        @torch.no_grad()
        def count(name: str, neuron: SpikingNeuron, x: Tensor, _spikes: Tensor) -> None:
            new = self._count(neuron, neuron.membrane_potential(x))
            sums[name] = sums[name] + new if name in sums else new  # called more than once

        with observing(network.neurons(), count):
            yield histograms
        edges = np.linspace(-self.span, self.span, self.bins + 1)
        for name, tensor in sums.items():
            *counts, fires, no_gradient, total = tensor.tolist()
            histograms[name] = _Histogram(np.array(counts), edges, fires / total, no_gradient / total)

    @override
    def record(self, trainer: Trainer, observed: dict[str, _Histogram], step: int) -> None:
        for logger in trainer.loggers:
            _log(logger, observed, step)
        content = {"step": step, "layers": {name: histogram.to_dict() for name, histogram in observed.items()}}
        self._first = self._first or content
        write_json(run_folder(trainer) / _FILE, {"first": self._first, "last": content})

    def _count(self, neuron: SpikingNeuron, u: Tensor) -> Tensor:
        u = (u / per_channel(neuron.firing_threshold, u)).float()
        counts = torch.histc(u.clamp(-self.span, self.span), self.bins, -self.span, self.span)
        fires = (u.abs() if neuron.is_ternary else u) >= 1
        one = torch.ones((), device=u.device)
        gradient = SURROGATES[neuron.surrogate](u, one, neuron.is_ternary, neuron.levels)
        beyond = torch.stack([fires.sum(), (gradient == 0).sum(), torch.tensor(u.numel(), device=u.device)])
        return torch.cat([counts.double(), beyond.double()])


def _log(logger: Logger, observed: dict[str, _Histogram], step: int) -> None:
    metrics: dict[str, Any] = {}
    for name, histogram in observed.items():
        tag = _MEMBRANE(name)
        metrics[_MEMBRANE(name, "fires")] = histogram.fires
        metrics[_MEMBRANE(name, "no_gradient")] = histogram.no_gradient
        if isinstance(logger, TensorBoardLogger):
            _add_to_tensorboard(logger, tag, histogram, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            metrics[tag] = wandb.Histogram(np_histogram=(histogram.counts, histogram.edges))
        else:
            metrics |= {_MEMBRANE(name, f"q{100 * q:02.0f}"): histogram.quantile(q) for q in _QUANTILES}
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


def _draw(logs: RunLogs) -> SectionContent | None:
    content = logs.json(_FILE)
    if content is None:
        return None
    first, last = content["first"], content["last"]
    rows = [(name, f"{h['fires']:.4f}", f"{h['no_gradient']:.4f}") for name, h in last["layers"].items()]
    if any(len(h["edges"]) > _MOST_BINS + 1 for side in (first, last) for h in side["layers"].values()):
        raise ReportError(f"{logs.folder / _FILE} has histograms of more than {_MOST_BINS} bins")
    drawn = evenly_chosen(last["layers"], LINES)
    return SectionContent(
        f"Before firing, in thresholds (dashed), at step {last['step']} (filled) and at step {first['step']} (line). "
        "Ternary neurons fire where it is red, binary ones on the right side only. What lies beyond the axis is in the "
        f"outermost bins. {left_out(last['layers'], drawn, 'layers')}",
        [("Histogram of every layer's membrane potential", plot_histograms(first["layers"], drawn))],
        ("neuron layer", "share that fires", "share without surrogate gradient"),
        rows,
    )


MEMBRANE_POTENTIALS = ReportSection("Membrane potentials", _draw)
