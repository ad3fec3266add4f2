"""Log how often the neurons of every layer fire, and how much their spikes can tell."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from .._batches import images_of
from .._observe import observing
from ..analysis.figures import plot_firing_rates, plot_over_time
from ..analysis.run_logs import RunLogs, Series
from ..analysis.sections import (
    BARS,
    LINES,
    Fact,
    LayerTag,
    ReportSection,
    SectionContent,
    evenly_chosen,
    left_out,
    thinned_series,
)
from ..analysis.spikes import FiringRate, firing_rates
from ..graph import TraceError
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from ..training.synaptic_cost import OperationsBySize, SpikeReadings, SynapticOperations
from ._common import BatchObserver, target_of
from ._history import History, RemembersLayers
from .run_files import run_folder

__all__ = ["FIRING_RATES", "FiringRateMonitor"]

_RATE, _ENTROPY, _SYNOPS = LayerTag("firing_rate"), LayerTag("entropy"), LayerTag("synops")
_SYNOPS_IN_ALL, _SYNOPS_TARGET = "synops_in_all", "synops_target"
_HISTORY = "firing_rate_history.json"


class FiringRateMonitor(BatchObserver, RemembersLayers):
    """Firing rates and entropy of every neuron layer, over a training batch every n steps, as scalars to every logger.

    With several processes it is the first one's batch. Time steps t are counted from 1.

    * ``firing_rate/<layer>/positive`` and ``/negative``: share of (neuron, time step, sample) triples that fired,
    * ``firing_rate/<layer>/positive_t<t>`` and ``/negative_t<t>``: the same at one time step,
    * ``entropy/<layer>/signed``: entropy of a spike in bits (:mod:`lightning_tspike.analysis.spikes`),
    * ``entropy/<layer>/unsigned``: the same without the sign, which is all that binary spikes could emit,
    * ``synops/<layer>`` and ``synops_in_all``: synaptic operations that the layer's spikes cause, and all of them, as a
      share of the MACs of the layers that read spikes (:mod:`lightning_tspike.training.synaptic_cost`); beside them
      ``synops_target``, where the loss has one.

    Checkpoints hold the firing rates so far, thinned out to 128 steps, so that the report of a resumed run draws from
    the first step: in the folder of such a run, ``firing_rate_history.json`` has what came before.

    Args:
        every_n_steps: Observe one training batch every n optimizer steps; by default as often as the trainer logs.

    Raises:
        MisconfigurationException: ``every_n_steps`` is below 1, the trainer has no logger, or the module has no
            spiking network in ``network``.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        BatchObserver.__init__(self, every_n_steps)
        RemembersLayers.__init__(self, _HISTORY)  # share of neurons that fire, of either sign
        self._operations = OperationsBySize()
        self._batch: object = None  # that is about to be observed

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._history.write(run_folder(trainer))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._operations = OperationsBySize()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._batch = batch
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch = None

    @override
    @contextmanager
    def observe(self, network: SpikingNetwork) -> Iterator[_Observed]:
        operations = self._operations_of(network)
        with firing_rates(network) as rates:
            if operations is None:
                yield _Observed(rates, None, None)
                return
            readings = operations.readings()

            @torch.no_grad()
            def count(_name: str, neuron: SpikingNeuron, _x: Tensor, spikes: Tensor) -> None:
                readings(neuron, spikes)

            with observing(network.neurons(), count):
                yield _Observed(rates, operations, readings)

    def _operations_of(self, network: SpikingNetwork) -> SynapticOperations | None:
        """What counts them on this batch; None in an ANN, or where nobody can tell who reads the spikes."""
        if not network.neurons():
            return None
        try:
            images = images_of(self._batch, next(network.parameters()).dtype)
            return self._operations.of(network, images)
        except (ValueError, TraceError) as error:  # of a module of your own, which reads its batches otherwise
            rank_zero_warn(f"FiringRateMonitor counts no synaptic operations: {error}")
            return None

    @override
    def record(self, trainer: Trainer, observed: _Observed, step: int) -> None:
        scalars: dict[str, float] = {}
        for name, rate in observed.rates.items():
            scalars[_RATE(name, "positive")] = rate.positive
            scalars[_RATE(name, "negative")] = rate.negative
            for t, (positive, negative) in enumerate(zip(rate.positive_by_step, rate.negative_by_step, strict=True), 1):
                scalars[_RATE(name, f"positive_t{t}")] = positive
                scalars[_RATE(name, f"negative_t{t}")] = negative
            scalars[_ENTROPY(name, "signed")] = rate.entropy
            scalars[_ENTROPY(name, "unsigned")] = rate.unsigned_entropy
        if observed.operations is not None and observed.readings is not None:
            shares = observed.operations.shares(observed.readings).tolist()
            scalars |= {_SYNOPS(name): share for name, share in zip(observed.operations.neurons, shares, strict=True)}
            scalars[_SYNOPS_IN_ALL] = sum(shares)
            if (target := target_of(trainer.lightning_module)) is not None:
                scalars[_SYNOPS_TARGET] = target
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
        self._history.add(step, {name: rate.positive + rate.negative for name, rate in observed.rates.items()})


class _Observed(NamedTuple):
    """Of one batch."""

    rates: dict[str, FiringRate]
    operations: SynapticOperations | None
    readings: SpikeReadings | None


def _draw(logs: RunLogs) -> SectionContent | None:
    positive, negative = (_RATE.series(logs.scalars, sign) for sign in ("positive", "negative"))
    if not positive:
        return None
    last = {tag: values[-1] for tag, (_, values) in logs.scalars.items()}
    rates = {name: (last[_RATE(name, "positive")], last[_RATE(name, "negative")]) for name in positive}
    bars, lines = evenly_chosen(rates, BARS), evenly_chosen(rates, LINES)
    totals: Series = {}
    for name in lines:
        steps, values = positive[name]
        totals[name] = steps, array("d", [p + n for p, n in zip(values, negative[name][1], strict=True)])
    totals = History(_HISTORY).before(logs, totals)
    first = next(iter(positive))
    timesteps = list(takewhile(lambda t: _RATE(first, f"positive_t{t}") in last, count(1)))
    has_synops = _SYNOPS_IN_ALL in last
    rows = [
        (
            name,
            *(f"{rate:.4f}" for rate in rates[name]),
            *(
                f"{last[_RATE(name, f'positive_t{t}')]:.3f} / {last[_RATE(name, f'negative_t{t}')]:.3f}"
                for t in timesteps
            ),
            f"{last[_ENTROPY(name, 'signed')]:.3f}",
            f"{last[_ENTROPY(name, 'unsigned')]:.3f}",
            *([f"{last[_SYNOPS(name)]:.2%}" if _SYNOPS(name) in last else "read by none"] if has_synops else []),
        )
        for name in positive
    ]
    of_layers = [sum(rate) for rate in rates.values()]
    synops = {tag: logs.scalars[tag] for tag in (_SYNOPS_IN_ALL, _SYNOPS_TARGET) if tag in last}
    return SectionContent(
        "Share of neurons that fire, by sign of the spike, on the latest training batch that was observed; and the "
        f"entropy of a spike in bits, with its sign (at most 1.585) and without (at most 1). "
        f"{_say_synops(last)}{left_out(rates, lines, 'layers')}",
        [
            ("Positive and negative firing rate of every layer", plot_firing_rates(bars)),
            ("Firing rate of every layer over the steps", plot_over_time(thinned_series(totals), "firing rate")),
            *(
                [("Synaptic operations over the steps", plot_over_time(thinned_series(synops), "share of the MACs"))]
                if has_synops
                else []
            ),
        ],
        (
            "neuron layer",
            "positive",
            "negative",
            *(f"t = {t}: + / -" for t in timesteps),
            "bits",
            "bits without sign",
            *(["SynOps / MACs"] if has_synops else []),
        ),
        rows,
        [
            Fact(
                "firing rate",
                f"{sum(of_layers) / len(of_layers):.2f}",
                f"mean over {len(of_layers):,} layers; {min(of_layers):.2f} to {max(of_layers):.2f}",
            )
        ],
    )


def _say_synops(last: dict[str, float]) -> str:
    """A sentence on the synaptic operations, or nothing where they were not counted."""
    if _SYNOPS_IN_ALL not in last:
        return ""
    target = f"; the target is {last[_SYNOPS_TARGET]:.1%}" if _SYNOPS_TARGET in last else ""
    return (
        f"The spikes cause {last[_SYNOPS_IN_ALL]:.1%} of the multiply-accumulates of the layers that read them as "
        f"synaptic operations{target}. "
    )


FIRING_RATES = ReportSection("Firing rates", _draw)
