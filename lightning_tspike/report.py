"""What is known of a network's amplitudes before folding, and what folding did: as data, as text and as tables."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .gauge import GaugeClasses, TrainingScales
from .neurons import SpikingNeuron

__all__ = ["FoldReport", "FoldedNeuron", "LayerInput", "NetworkReport", "NeuronInfo", "new_table", "table_text"]

Effect: TypeAlias = Literal["live", "cancelled"]
"""Whether an amplitude changes what the network computes in training mode, or a norm divides it out everywhere."""

Numbers: TypeAlias = tuple[float, ...]
"""One number for the whole layer, or one for each channel."""


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
                    amplitude="fixed" if raw is None else "layer" if raw.numel() == 1 else "channel",
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
            f"{len(self.neurons) - live} cancelled by norms in training"
        )


@dataclass(frozen=True)
class FoldedNeuron:
    """What folding did to one neuron layer.

    Attributes:
        name: Its name in the model.
        amplitude: Before folding.
        threshold: After folding.
        group: As in :class:`NeuronInfo`.
        effect: As in :class:`NeuronInfo`.
        folded: Whether the amplitude is gone.
        firing_rate: Share of its spikes that were not 0 on the verification batch: 0 means that nothing was verified.
    """

    name: str
    amplitude: Numbers
    threshold: Numbers
    group: int
    effect: Effect
    folded: bool
    firing_rate: float


@dataclass(frozen=True)
class LayerInput:
    """What the input of one weighted layer (convolution, linear) held on the verification batch.

    Attributes:
        name: Its name in the model.
        holds: ``"ternary"`` (-1, 0, 1), ``"integer"`` or ``"real"``; only additions are needed if it is not real.
        largest: Greatest absolute value.
        macs: Multiply-accumulate operations for one image or sequence, over all time steps, were nothing sparse.
    """

    name: str
    holds: Literal["ternary", "integer", "real"]
    largest: float
    macs: int


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    Attributes:
        neurons: Every neuron layer, in the order of execution.
        layers: Every weighted layer, in the order of execution.
        deviation: Greatest deviation of the logits on the verification batch and on frames of noise in float64,
            relative to the greatest logit.
        sum_pools: Average pools that sum now; the gauge has taken up their division.
        merged_norms: Norms that are part of the layer before them now: name of the norm -> name of that layer.
        functions: Activations that are no neurons, because they are called as functions: which one, in which module, at
            which line.
        tied: Those of ``kept`` whose spikes can cancel in a neuron that does not leak and resets softly, where
            rounding would decide whether it fires (:mod:`lightning_tspike.ties`).
    """

    neurons: tuple[FoldedNeuron, ...]
    layers: tuple[LayerInput, ...]
    deviation: float
    sum_pools: tuple[str, ...] = ()
    merged_norms: dict[str, str] | None = None
    functions: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def kept(self) -> list[str]:
        """Names of the neuron layers that keep an amplitude."""
        return [neuron.name for neuron in self.neurons if not neuron.folded]

    @property
    def silent(self) -> list[str]:
        """Names of the neuron layers that never fired on the verification batch."""
        return [neuron.name for neuron in self.neurons if neuron.firing_rate == 0]

    @property
    def addition_only(self) -> float:
        """Share of the weighted layers whose input was not real."""
        return sum(layer.holds != "real" for layer in self.layers) / max(1, len(self.layers))

    @property
    def addition_only_macs(self) -> float:
        """Share of all multiply-accumulate operations that lies in those layers."""
        macs = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.holds != "real") / max(1, macs)

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold."""
        shares = {"addition_only": self.addition_only, "addition_only_macs": self.addition_only_macs}
        return asdict(self) | shares | {"merged_norms": self.merged_norms or {}}

    def details(self) -> str:
        """Tables of the neuron layers and of the weighted layers, and the summary below."""
        neurons = new_table("neuron layer", "amplitude", "threshold after", "group", "effect", "folded", "firing rate")
        for n in self.neurons:
            folded = "yes" if n.folded else "no, kept"
            rate = f"{n.firing_rate:.4f}"
            neurons.add_row(n.name, _range(n.amplitude), _range(n.threshold), str(n.group), n.effect, folded, rate)
        layers = new_table("weighted layer", "its input holds", "up to", "MACs")
        for layer in self.layers:
            layers.add_row(layer.name, layer.holds, f"{layer.largest:.6g}", f"{layer.macs:,}")
        return f"{table_text(neurons, layers)}{self}"

    def __str__(self) -> str:
        holds = [layer.holds for layer in self.layers]
        return (
            f"{len(self.neurons) - len(self.kept)} of {len(self.neurons)} amplitudes folded"
            + (f" (kept: {', '.join(self.kept)})" if self.kept else "")
            + (f" (kept so that ties at a threshold stay as they are: {', '.join(self.tied)})" if self.tied else "")
            + f"; inputs of {len(holds)} weighted layers: {holds.count('ternary')} ternary, "
            f"{holds.count('integer')} integer, {holds.count('real')} real, so {100 * self.addition_only:.1f} % "
            f"of them with {100 * self.addition_only_macs:.1f} % of the MACs need additions only; "
            f"greatest relative deviation in float64 {self.deviation:.1e}"
            + (f"; never fired, so not verified: {', '.join(self.silent)}" if self.silent else "")
            + (f"; activations that are no neurons: {', '.join(self.functions)}" if self.functions else "")
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


def _range(numbers: Numbers) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.4f}"
    return f"{min(numbers):.4f} to {max(numbers):.4f} ({len(numbers)} channels)"


def new_table(*columns: str) -> Table:
    """A table whose columns are as wide as what is in them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def table_text(*tables: Table) -> str:
    """Tables as plain text, as wide as they need to be: names are there to be copied."""
    file = io.StringIO()
    console = Console(file=file, width=1000, no_color=True)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
