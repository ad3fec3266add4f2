"""Estimate what a spiking network costs: synaptic operations and energy, next to the same network as an ANN.

The field's accounting, layer by layer, for convolutions and linear layers:

    input                       operations                               energy
    real (the image)            MACs of the layer                        E_MAC each
    spikes, or sums of spikes   SynOps = mean |x| * MACs of the layer    E_AC each

MACs are the multiply-accumulates of the dense layer over all time steps that it runs in: those before the first neuron
run once for a still image. A spike through one synapse is one accumulate, a sum of k spikes counts as k. The ANN is the
same network with real activations: MACs of one pass over an image (of T passes over T frames), E_MAC each.

Not counted, as is usual: the neurons' own updates, norms (which can be merged), pools, memory traffic; and products of
two signals (attention), which are no layers.

E_MAC = 4.6 pJ (multiply 3.7, add 0.9) and E_AC = 0.9 pJ are those of 32-bit floating point at 45 nm: M. Horowitz,
"Computing's energy problem (and what we can do about it)", ISSCC 2014.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._observe import observing
from .._tables import new_table, table_text
from ..graph.operations import WEIGHTED, dense_macs
from ..network.spiking_network import SpikingNetwork

__all__ = ["AC_PICOJOULES", "MAC_PICOJOULES", "EnergyReport", "LayerEnergy", "measure_energy"]

MAC_PICOJOULES = 4.6
AC_PICOJOULES = 0.9


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
        mac_picojoules: Energy of a multiply-accumulate, in pJ.
        ac_picojoules: Energy of an accumulate, in pJ.
    """

    layers: tuple[LayerEnergy, ...]
    mac_picojoules: float = MAC_PICOJOULES
    ac_picojoules: float = AC_PICOJOULES

    def picojoules(self, layer: LayerEnergy) -> float:
        """Energy of one layer, in pJ per image."""
        return self.mac_picojoules * layer.macs + self.ac_picojoules * layer.synops

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
        return sum(map(self.picojoules, self.layers))

    @property
    def ann_macs(self) -> float:
        """Multiply-accumulates per image of the same network as an ANN."""
        return sum(layer.ann_macs for layer in self.layers)

    @property
    def ann_picojoules(self) -> float:
        """Energy per image in pJ of the same network as an ANN."""
        return self.mac_picojoules * self.ann_macs

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold."""
        totals = {"picojoules": self.total_picojoules, "ann_picojoules": self.ann_picojoules}
        return asdict(self) | totals | {"macs": self.macs, "synops": self.synops}

    def __str__(self) -> str:
        table = new_table("weighted layer", "MACs", "SynOps", "uJ", "as ANN: MACs", "uJ")
        for layer in self.layers:
            table.add_row(*energy_row(self, layer))
        ratio = self.total_picojoules / self.ann_picojoules
        return (
            f"{table_text(table)}per image {self.macs:,.0f} multiply-accumulates and {self.synops:,.0f} synaptic "
            f"operations: {self.total_picojoules / 1e6:.4g} uJ, {ratio:.3f} times the ANN's "
            f"{self.ann_picojoules / 1e6:.4g} uJ ({self.mac_picojoules} pJ per MAC, {self.ac_picojoules} pJ per "
            "accumulate)"
        )


def energy_row(report: EnergyReport, layer: LayerEnergy) -> tuple[str, ...]:
    """Cells of a table: name, MACs, SynOps, microjoules; MACs and microjoules of the ANN."""
    ours, theirs = report.picojoules(layer) / 1e6, report.mac_picojoules * layer.ann_macs / 1e6
    operations = f"{layer.macs:,.0f}", f"{layer.synops:,.0f}", f"{ours:.4g}"
    return layer.name, *operations, f"{layer.ann_macs:,.0f}", f"{theirs:.4g}"


def measure_energy(
    network: SpikingNetwork,
    images: Tensor,
    *,
    mac_picojoules: float = MAC_PICOJOULES,
    ac_picojoules: float = AC_PICOJOULES,
) -> EnergyReport:
    """Run a folded network on some images and count the operations of every convolution and linear layer.

    Args:
        network: Folded, best with ``integer_pools=True``: whatever reaches a layer as other than whole numbers counts
            as real, such as the spikes of an amplitude that is not folded or their averages.
        images: Real ones [B, C, H, W] or frames [B, T, C, H, W], on the network's device: firing rates depend on them.
        mac_picojoules: Energy of a multiply-accumulate, in pJ.
        ac_picojoules: Energy of an accumulate, in pJ.

    Returns:
        Operations and energy per image.

    Raises:
        ValueError: An energy is not positive, or there is no image.
    """
    if min(mac_picojoules, ac_picojoules) <= 0:
        raise ValueError(f"energies must be positive, got {mac_picojoules!r} and {ac_picojoules!r} pJ")
    if len(images) == 0:
        raise ValueError("energy is measured on images, got none")
    counts = _operations(network, images)
    single = copy.deepcopy(network)  # one time step is one pass of the ANN
    single.timesteps = 1
    is_sequence = images.ndim == len(network.input_size) + 2
    passes = images.shape[1] if is_sequence else 1
    dense = _operations(single, images[:1, :1] if is_sequence else images[:1])
    layers = tuple(
        LayerEnergy(name, count.macs, count.synops, ann_macs=passes * dense[name].dense)
        for name, count in counts.items()
    )
    return EnergyReport(layers, mac_picojoules, ac_picojoules)


class _Operations(NamedTuple):
    """Of one layer, per image."""

    dense: float  # multiply-accumulates, were nothing sparse
    macs: float
    synops: float


@torch.no_grad()
def _operations(network: SpikingNetwork, images: Tensor) -> dict[str, _Operations]:
    counts: dict[str, _Operations] = {}

    def count(name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        dense = dense_macs(layer, output) / len(images)
        is_whole = torch.equal(x, x.round())
        synops = dense * x.abs().double().mean().item() if is_whole else 0.0
        old = counts.get(name, _Operations(0.0, 0.0, 0.0))  # called at several places
        counts[name] = _Operations(old.dense + dense, old.macs + dense * (not is_whole), old.synops + synops)

    was_training = network.training
    network.eval()
    weighted = {name: module for name, module in network.model.named_modules() if isinstance(module, WEIGHTED)}
    try:
        with observing(weighted, count):
            network(images)
    finally:
        network.train(was_training)
    return counts
