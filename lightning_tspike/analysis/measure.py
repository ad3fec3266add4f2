"""Measure a network on its test set, for its card: accuracy at each precision, firing rates, energy, pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from .._batches import images_of
from ..files.weights import Precision
from ..folding.absorb import fold
from ..folding.report import FoldReport
from ..network.spiking_network import SpikingNetwork
from .energy import EnergyReport, measure_energy
from .evaluation import evaluate
from .figures import plot_firing_rates, plot_neuron_amplitudes
from .spikes import FiringRate

__all__ = ["PICTURES", "Measured", "measure", "png"]

_RATES, _AMPLITUDES = PICTURES = ("firing_rates.png", "amplitudes.png")


@dataclass(frozen=True)
class Measured:
    """What was measured of a network.

    Attributes:
        dataset: Name of the dataset.
        samples: How many test samples there are.
        accuracies: Top-1 accuracy on them in [0, 1], for each precision of the weights.
        top5: Top-5 accuracy in the same way.
        command: What measures it again.
        firing_rates: By neuron layer, of the most precise weights.
        energy: Operations and energy per sample, of the most precise weights on the first batch.
        pictures: PNG files by name.
    """

    dataset: str
    samples: int
    accuracies: dict[Precision, float]
    top5: dict[Precision, float]
    command: str
    firing_rates: dict[str, FiringRate] = field(repr=False)
    energy: EnergyReport = field(repr=False)
    pictures: dict[str, bytes] = field(repr=False)


def measure(
    networks: Mapping[Precision, SpikingNetwork],
    batches: Iterable[Any],
    *,
    dataset: str,
    command: str,
    report: FoldReport | None = None,
) -> Measured:
    """Measure folded networks that differ in the precision of their weights alone.

    Args:
        networks: By precision, the most precise first.
        batches: A data loader of the test set: (images [B, C, H, W] or frames [B, T, C, H, W], labels [B]).
        dataset: Its name.
        command: What measures it again, for the card.
        report: What folding did: its amplitudes are drawn.

    Raises:
        ValueError: There is not one sample.
    """
    results = {
        precision: evaluate(network, batches, description=f"testing {precision} weights")
        for precision, network in networks.items()
    }
    best, network = next(iter(results.values())), next(iter(networks.values()))
    weight = next(network.parameters())
    images = images_of(next(iter(batches)), weight.dtype).to(weight.device)
    # pools that sum spikes, as hardware would: an average of spikes is no whole number
    summed, _ = fold(network, images[:8].double().cpu(), integer_pools=True)
    rates = {name: (rate.positive, rate.negative) for name, rate in best.firing_rates.items()}
    pictures = {_RATES: png(plot_firing_rates(rates))} if rates else {}
    if report is not None and report.neurons:
        pictures[_AMPLITUDES] = png(plot_neuron_amplitudes({n.name: n.amplitude for n in report.neurons}))
    return Measured(
        dataset,
        len(best.decisions),
        {precision: result.accuracy for precision, result in results.items()},
        {precision: result.top5 for precision, result in results.items()},
        command,
        best.firing_rates,
        measure_energy(summed.to(images.device), images),
        pictures,
    )


def png(figure: Figure) -> bytes:
    """A figure as a PNG file, the same bytes for the same figure: publishing twice changes nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
