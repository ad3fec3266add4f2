"""What is known of a network's amplitudes before folding: as data, as text and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from rich.table import Table
from torch import Tensor

from .._tables import new_table, table_text
from ..graph.gauges import GaugeClasses, TrainingScales
from ..neurons import SpikingNeuron

__all__ = ["Effect", "NetworkReport", "NeuronInfo", "group_numbers"]

WORDS = (
    "live: changing the amplitude changes what the network computes in training; cancelled: a norm divides it out "
    "wherever the spikes go, so it does not learn. Spikes of one group meet in a sum: they are stored in one unit, "
    "their gauge."
)
"""What the words in these tables mean, below them."""

Effect: TypeAlias = Literal["live", "cancelled"]
"""Whether an amplitude changes what the network computes in training mode, or a norm divides it out everywhere."""


@dataclass(frozen=True)
class NeuronInfo:
    """One neuron layer of a network.

    Attributes:
        name: Its name in the model.
        kind: Name of its class.
        amplitude: ``"layer"`` or ``"channel"`` where it is learned, else ``"fixed"``.
        effect: ``"live"`` or ``"cancelled"``.
        group: Number of the gauge class that its spikes belong to (the first one, where channels have several); layers
            with the same number meet in a sum.
        shares_amplitude_with: Name of the first neuron layer with the same parameter, if that is another one.
        foldable: Whether the fold can take the whole amplitude away.
    """

    name: str
    kind: str
    amplitude: Literal["layer", "channel", "fixed"]
    effect: Effect
    group: int
    shares_amplitude_with: str | None
    foldable: bool


@dataclass(frozen=True)
class NetworkReport:
    """The neuron layers of a network, in the order of execution; ``print`` shows them as a table."""

    neurons: tuple[NeuronInfo, ...]

    @staticmethod
    def of(classes: GaugeClasses, scales: TrainingScales) -> NetworkReport:
        """Read it off the analysis of a graph."""
        cancelled = scales.cancelled()
        gauges = classes.gauges()
        owners: dict[int, str] = {}
        neurons = []
        for neuron, layer in classes.neurons():
            raw = neuron.raw_amplitude
            owner = owners.setdefault(id(raw), layer.name) if raw is not None else layer.name
            neurons.append(
                NeuronInfo(
                    name=layer.name,
                    kind=type(neuron).__name__,
                    amplitude=neuron.amplitude_kind,
                    effect="cancelled" if neuron in cancelled else "live",
                    group=group_numbers(classes)[neuron],
                    shares_amplitude_with=None if owner == layer.name else owner,
                    foldable=raw is None or bool((gauges[layer.outputs] == _as_tensor(neuron.amplitude)).all()),
                )
            )
        return NetworkReport(tuple(neurons))

    def table(self) -> Table:
        table = new_table("neuron layer", "kind", "amplitude", "effect", "group", "folds")
        for n in self.neurons:
            shared = f", that of {n.shares_amplitude_with}" if n.shares_amplitude_with else ""
            folds = "yes" if n.foldable else "no"
            table.add_row(n.name, n.kind, n.amplitude + shared, n.effect, str(n.group), folds)
        return table

    def __str__(self) -> str:
        learned = [n for n in self.neurons if n.amplitude != "fixed"]
        live = sum(n.effect == "live" for n in self.neurons)
        return table_text(self.table()) + (
            f"{len(self.neurons)} neuron layers: {len(learned)} with a learned amplitude, "
            f"{len({n.shares_amplitude_with or n.name for n in learned})} of them different; {live} live, "
            f"{len(self.neurons) - live} cancelled by norms in training\n{WORDS}"
        )


def group_numbers(classes: GaugeClasses) -> dict[SpikingNeuron, int]:
    """The gauge classes of the neurons' spikes, numbered from 1 in the order of execution."""
    numbers: dict[int, int] = {}
    return {
        neuron: numbers.setdefault(int(classes.labels[layer.outputs[0]]), len(numbers) + 1)
        for neuron, layer in classes.neurons()
    }


def _as_tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).detach().to("cpu", torch.float64)
