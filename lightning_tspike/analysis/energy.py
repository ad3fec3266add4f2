"""Estimate what a spiking network costs: synaptic operations and energy, next to the same network as an ANN.

Operations are counted layer by layer, for convolutions and linear layers:

    input                       operations
    real (the image)            MACs of the layer
    spikes, or sums of spikes   SynOps = mean |x| * MACs of the layer

MACs are the multiply-accumulates of the dense layer over all time steps that it runs in: those before the first neuron
run once for a still image. A spike through one synapse is one accumulate, a sum of k spikes counts as k. The ANN is the
same network with real activations: MACs of one pass over an image (of T passes over T frames).

Neurons compare their membrane potential with thresholds at every time step: one sign operation for binary neurons, two
for ternary ones, two for each level where there are several. What each kind of operation costs is the accounting
(:mod:`lightning_tspike.analysis.accounting`).

Not counted, as is usual: the neurons' other updates, norms (which can be merged), pools, memory traffic; and products
of two signals (attention), which are no layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._observe import observing
from .._tables import new_table, table_text
from ..graph.operations import WEIGHTED, dense_macs
from ..network.spiking_network import SpikingNetwork
from .accounting import HOROWITZ, Accounting, AccountingName, accounting_of

__all__ = ["AC_PICOJOULES", "MAC_PICOJOULES", "EnergyReport", "LayerEnergy", "energy_rows", "measure_energy"]

MAC_PICOJOULES, AC_PICOJOULES = HOROWITZ.mac_picojoules, HOROWITZ.ac_picojoules


@dataclass(frozen=True)
class LayerEnergy:
    """One weighted layer; all numbers are means per image (or sequence of frames).

    Attributes:
        name: Its name in the model.
        macs: Multiply-accumulates done, where its input is real.
        synops: Synaptic operations (accumulates) done, where its input is spikes or sums of them.
        ann_macs: Multiply-accumulates in the ANN.
    """

    name: str
    macs: float
    synops: float
    ann_macs: float


@dataclass(frozen=True)
class EnergyReport:
    """What a network costs; ``print`` shows it as a table.

    Attributes:
        layers: The weighted layers in the order of execution.
        accounting: What an operation costs.
        signs: Sign operations of all neurons, per image.
        passes: How often as the ANN the network runs its layers: T for a still image, 1 for frames; None where that is
            not known.
    """

    layers: tuple[LayerEnergy, ...]
    accounting: Accounting = HOROWITZ
    signs: float = 0.0
    passes: int | None = None

    @property
    def mac_picojoules(self) -> float:
        """Energy of a multiply-accumulate, in pJ."""
        return self.accounting.mac_picojoules

    @property
    def ac_picojoules(self) -> float:
        """Energy of an accumulate, in pJ."""
        return self.accounting.ac_picojoules

    def picojoules(self, layer: LayerEnergy) -> float:
        """Energy of one layer, in pJ per image."""
        return self.accounting.picojoules(layer.macs, layer.synops)

    @property
    def macs(self) -> float:
        """Multiply-accumulates per image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def synops(self) -> float:
        """Synaptic operations per image."""
        return sum(layer.synops for layer in self.layers)

    @property
    def total_picojoules(self) -> float:
        """Energy per image in pJ."""
        return self.accounting.picojoules(self.macs, self.synops, self.signs)

    @property
    def ann_macs(self) -> float:
        """Multiply-accumulates per image of the same network as an ANN."""
        return sum(layer.ann_macs for layer in self.layers)

    def synops_share(self, *layers: LayerEnergy) -> float | None:
        """Synaptic operations as a share of the MACs of the layers that read spikes, over all time steps.

        Args:
            layers: Of these layers; of all where none is given.

        Returns:
            The share; None where no layer reads spikes, or ``passes`` is not known.
        """
        read = [layer for layer in layers or self.layers if layer.synops]
        if not read or self.passes is None:
            return None
        return sum(layer.synops for layer in read) / sum(self.passes * layer.ann_macs for layer in read)

    @property
    def ann_picojoules(self) -> float:
        """Energy per image in pJ of the same network as an ANN."""
        return self.mac_picojoules * self.ann_macs

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold."""
        totals = {"picojoules": self.total_picojoules, "ann_picojoules": self.ann_picojoules}
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "accounting": self.accounting.name,
            **asdict(self.accounting),
            **totals,
            "macs": self.macs,
            "synops": self.synops,
            "signs": self.signs,
            "passes": self.passes,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EnergyReport:
        """What :meth:`to_dict` has given, also before there were accountings by name.

        Raises:
            KeyError: Something is missing.
            TypeError, ValueError: Something is no such report's.
        """
        accounting = Accounting(
            content["mac_picojoules"], content["ac_picojoules"], content.get("sign_picojoules", 0.0)
        )
        layers = tuple(LayerEnergy(**layer) for layer in content["layers"])
        return cls(layers, accounting, content.get("signs", 0.0), content.get("passes"))

    def __str__(self) -> str:
        table = new_table("weighted layer", "MACs", "SynOps", "uJ", "as ANN: MACs", "uJ")
        for row in energy_rows(self):
            table.add_row(*row)
        ratio = self.total_picojoules / self.ann_picojoules
        signs = f", {self.signs:,.0f} sign operations" if self.accounting.sign_picojoules else ""
        return (
            f"{table_text(table)}per image {self.macs:,.0f} multiply-accumulates and {self.synops:,.0f} synaptic "
            f"operations{signs}: {self.total_picojoules / 1e6:.4g} uJ, {ratio:.3f} times the ANN's "
            f"{self.ann_picojoules / 1e6:.4g} uJ ({self.accounting})"
        )


def energy_rows(report: EnergyReport) -> list[tuple[str, ...]]:
    """Cells of a table, by weighted layer: name, MACs, SynOps, microjoules; MACs and microjoules of the ANN.

    The last row is that of the neurons, where their sign operations cost something.
    """
    accounting = report.accounting
    rows: list[tuple[str, ...]] = []
    for layer in report.layers:
        ours, theirs = report.picojoules(layer) / 1e6, accounting.mac_picojoules * layer.ann_macs / 1e6
        operations = f"{layer.macs:,.0f}", f"{layer.synops:,.0f}", f"{ours:.4g}"
        rows.append((layer.name, *operations, f"{layer.ann_macs:,.0f}", f"{theirs:.4g}"))
    if accounting.sign_picojoules:
        joules = accounting.picojoules(0, 0, report.signs) / 1e6
        rows.append((f"neurons: {report.signs:,.0f} signs", "", "", f"{joules:.4g}", "", ""))
    return rows


def measure_energy(
    network: SpikingNetwork,
    images: Tensor,
    accounting: AccountingName | Accounting = "horowitz",
    *,
    mac_picojoules: float | None = None,
    ac_picojoules: float | None = None,
) -> EnergyReport:
    """Run a folded network on some images and count its operations: of convolutions, linear layers and neurons.

    Args:
        network: Folded, best with ``integer_pools=True``: whatever reaches a layer as other than whole numbers counts
            as real, such as the spikes of an amplitude that is not folded or their averages.
        images: Real ones [B, C, H, W] or frames [B, T, C, H, W], on the network's device: firing rates depend on them.
        accounting: What an operation costs: ``"horowitz"`` or ``"paper"``
            (:mod:`lightning_tspike.analysis.accounting`), or an ``Accounting`` with constants of your own.
        mac_picojoules: In place of the accounting's energy of a multiply-accumulate, in pJ.
        ac_picojoules: In place of the accounting's energy of an accumulate, in pJ.

    Returns:
        Operations and energy per image.

    Raises:
        ValueError: There is no such accounting, an energy is out of range, or there is no image.
    """
    chosen = accounting_of(accounting, mac_picojoules, ac_picojoules)
    if len(images) == 0:
        raise ValueError("energy is measured on images, got none")
    counts, signs = _operations(network, images)
    single = copy.deepcopy(network)  # one time step is one pass of the ANN
    single.timesteps = 1
    is_sequence = images.ndim == len(network.input_size) + 2
    passes = images.shape[1] if is_sequence else 1
    dense, _ = _operations(single, images[:1, :1] if is_sequence else images[:1])
    layers = tuple(
        LayerEnergy(name, count.macs, count.synops, ann_macs=passes * dense[name].dense)
        for name, count in counts.items()
    )
    return EnergyReport(layers, chosen, signs, passes=1 if is_sequence else network.timesteps)


class _Operations(NamedTuple):
    """Of one layer, per image."""

    dense: float  # multiply-accumulates, were nothing sparse
    macs: float
    synops: float


@torch.no_grad()
def _operations(network: SpikingNetwork, images: Tensor) -> tuple[dict[str, _Operations], float]:
    """Those of every weighted layer, and the sign operations of all neurons."""
    counts: dict[str, _Operations] = {}
    signs = 0.0

    def count(name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        dense = dense_macs(layer, output) / len(images)
        is_whole = torch.equal(x, x.round())
        synops = dense * x.abs().double().mean().item() if is_whole else 0.0
        old = counts.get(name, _Operations(0.0, 0.0, 0.0))  # called at several places
        counts[name] = _Operations(old.dense + dense, old.macs + dense * (not is_whole), old.synops + synops)

    def count_signs(_name: str, neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        nonlocal signs
        signs += (2 * neuron.levels if neuron.is_ternary else 1) * spikes.numel() / len(images)

    was_training = network.training
    network.eval()
    weighted = {name: module for name, module in network.model.named_modules() if isinstance(module, WEIGHTED)}
    try:
        with observing(weighted, count), observing(network.neurons(), count_signs):
            network(images)
    finally:
        network.train(was_training)
    return counts, signs
