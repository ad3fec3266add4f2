"""What folding did: as data, as text and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from .._tables import new_table, table_text
from ..network.report import WORDS, Effect

__all__ = ["FoldReport", "FoldedNeuron", "LayerInput"]

Numbers: TypeAlias = tuple[float, ...]
"""One number for the whole layer, or one for each channel."""


@dataclass(frozen=True)
class FoldedNeuron:
    """What folding did to one neuron layer.

    Attributes:
        name: Its name in the model.
        amplitude: Before folding.
        threshold: After folding.
        group: As in :class:`lightning_tspike.network.NeuronInfo`.
        effect: As in :class:`lightning_tspike.network.NeuronInfo`.
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
        dense_macs: Multiply-accumulates for one image or sequence, over all time steps, were nothing skipped.
    """

    name: str
    holds: Literal["ternary", "integer", "real"]
    largest: float
    dense_macs: int


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    Attributes:
        neurons: Every neuron layer, in the order of execution.
        layers: Every weighted layer, in the order of execution.
        deviation: Greatest deviation of the logits on the verification batch and on frames of noise in float64,
            relative to the greatest logit.
        standardized: Convolutions that standardised their weights at each call, and hold the result now.
        sum_pools: Average pools that sum now; the gauge has taken up their division.
        merged_norms: Norms that are part of the layer before them now: name of the norm -> name of that layer.
        functions: Activations that are no neurons, because they are called as functions: which one, in which module, at
            which line.
        tied: Those of ``kept`` whose spikes can cancel in a neuron that does not leak and resets softly, where
            rounding would decide whether it fires (:mod:`lightning_tspike.graph.ties`).
    """

    neurons: tuple[FoldedNeuron, ...]
    layers: tuple[LayerInput, ...]
    deviation: float
    standardized: tuple[str, ...] = ()
    sum_pools: tuple[str, ...] = ()
    merged_norms: dict[str, str] | None = None
    functions: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FoldReport:
        """From what :meth:`to_dict` gave, and JSON may have held since.

        Raises:
            ValueError: It is something else.
        """
        known = {entry.name for entry in fields(cls)}
        try:
            read = {name: _as_tuple(value) for name, value in values.items() if name in known}
            read["neurons"] = tuple(
                FoldedNeuron(**{name: _as_tuple(value) for name, value in neuron.items()}) for neuron in read["neurons"]
            )
            read["layers"] = tuple(LayerInput(**layer) for layer in read["layers"])
            return cls(**read)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"is no report of a fold: {error}") from error

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
        macs = sum(layer.dense_macs for layer in self.layers)
        return sum(layer.dense_macs for layer in self.layers if layer.holds != "real") / max(1, macs)

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
            layers.add_row(layer.name, layer.holds, f"{layer.largest:.6g}", f"{layer.dense_macs:,}")
        return f"{table_text(neurons, layers)}{WORDS}\n{self}"

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


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON has lists alone


def _range(numbers: Numbers) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.4f}"
    return f"{min(numbers):.4f} to {max(numbers):.4f} ({len(numbers)} channels)"
