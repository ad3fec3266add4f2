"""Log how often the neurons of every layer fire, and how much their spikes can tell."""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager
from itertools import count, takewhile

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from ..analysis.figures import plot_firing_rates, plot_over_time
from ..analysis.run_logs import RunLogs, Series
from ..analysis.sections import (
    BARS,
    LINES,
    LayerTag,
    ReportSection,
    SectionContent,
    evenly_chosen,
    left_out,
    thinned_series,
)
from ..analysis.spikes import FiringRate, firing_rates
from ..network.spiking_network import SpikingNetwork
from ._common import BatchObserver
from ._history import History, RemembersLayers
from .run_files import run_folder

__all__ = ["FIRING_RATES", "FiringRateMonitor"]

_RATE, _ENTROPY = LayerTag("firing_rate"), LayerTag("entropy")
_HISTORY = "firing_rate_history.json"


class FiringRateMonitor(BatchObserver, RemembersLayers):
    """Firing rates and entropy of every neuron layer, over a training batch every n steps, as scalars to every logger.

    With several processes it is the first one's batch. Time steps t are counted from 1.

    * ``firing_rate/<layer>/positive`` and ``/negative``: share of (neuron, time step, sample) triples that fired,
    * ``firing_rate/<layer>/positive_t<t>`` and ``/negative_t<t>``: the same at one time step,
    * ``entropy/<layer>/signed``: entropy of a spike in bits (:mod:`lightning_tspike.analysis.spikes`),
    * ``entropy/<layer>/unsigned``: the same without the sign, which is all that binary spikes could emit.

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

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._history.write(run_folder(trainer))

    @override
    def observe(self, network: SpikingNetwork) -> AbstractContextManager[dict[str, FiringRate]]:
        return firing_rates(network)

    @override
    def record(self, trainer: Trainer, observed: dict[str, FiringRate], step: int) -> None:
        scalars: dict[str, float] = {}
        for name, rate in observed.items():
            scalars[_RATE(name, "positive")] = rate.positive
            scalars[_RATE(name, "negative")] = rate.negative
            for t, (positive, negative) in enumerate(zip(rate.positive_by_step, rate.negative_by_step, strict=True), 1):
                scalars[_RATE(name, f"positive_t{t}")] = positive
                scalars[_RATE(name, f"negative_t{t}")] = negative
            scalars[_ENTROPY(name, "signed")] = rate.entropy
            scalars[_ENTROPY(name, "unsigned")] = rate.unsigned_entropy
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
        self._history.add(step, {name: rate.positive + rate.negative for name, rate in observed.items()})


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
        )
        for name in positive
    ]
    return SectionContent(
        "Share of neurons that fire, by sign of the spike, on the latest training batch that was observed; and the "
        f"entropy of a spike in bits, with its sign (at most 1.585) and without (at most 1). "
        f"{left_out(rates, lines, 'layers')}",
        [
            ("Positive and negative firing rate of every layer", plot_firing_rates(bars)),
            ("Firing rate of every layer over the steps", plot_over_time(thinned_series(totals), "firing rate")),
        ],
        (
            "neuron layer",
            "positive",
            "negative",
            *(f"t = {t}: + / -" for t in timesteps),
            "bits",
            "bits without sign",
        ),
        rows,
    )


FIRING_RATES = ReportSection("Firing rates", _draw)
