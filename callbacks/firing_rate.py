"""Log how often the neurons of every layer fire, and how much their spikes can tell."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lightning.pytorch import Trainer
from typing_extensions import override

from ..analysis.spikes import FiringRate, firing_rates
from ..network.spiking_network import SpikingNetwork
from ._common import BatchWatcher

__all__ = ["FiringRateMonitor"]


class FiringRateMonitor(BatchWatcher):
    """Firing rates and entropy of every neuron layer, over a training batch every n steps, as scalars to every logger.

    With several processes it is the first one's batch. Time steps t are counted from 1.

    * ``firing_rate/<layer>/positive`` and ``/negative``: share of (neuron, time step, sample) triples that fired,
    * ``firing_rate/<layer>/positive_t<t>`` and ``/negative_t<t>``: the same at one time step,
    * ``entropy/<layer>/signed``: entropy of a spike in bits (:mod:`lightning_tspike.analysis.spikes`),
    * ``entropy/<layer>/unsigned``: the same without the sign, which is all that binary spikes could send.

    Args:
        every_n_steps: Look at one training batch every n optimizer steps; by default as often as the trainer logs.

    Raises:
        MisconfigurationException: ``every_n_steps`` is below 1, the trainer has no logger, or the module has no
            spiking network in ``network``.
    """

    @override
    def watch(self, network: SpikingNetwork) -> AbstractContextManager[dict[str, FiringRate]]:
        return firing_rates(network)

    @override
    def record(self, trainer: Trainer, seen: dict[str, FiringRate], step: int) -> None:
        scalars: dict[str, float] = {}
        for name, rate in seen.items():
            scalars[f"firing_rate/{name}/positive"] = rate.positive
            scalars[f"firing_rate/{name}/negative"] = rate.negative
            for t, (positive, negative) in enumerate(zip(rate.positive_by_step, rate.negative_by_step, strict=True), 1):
                scalars[f"firing_rate/{name}/positive_t{t}"] = positive
                scalars[f"firing_rate/{name}/negative_t{t}"] = negative
            scalars[f"entropy/{name}/signed"] = rate.entropy
            scalars[f"entropy/{name}/unsigned"] = rate.unsigned_entropy
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
