"""Synaptic operations as a cost: which share of a network's multiply-accumulates its spikes really do.

Layer l of neurons fires at the rate r_l, the mean of |s| over neurons, time steps and images. Each of its spikes is
added up in the layers that read it, once for every synapse it reaches; f_l is the part of these layers' MACs that is
done for it if it always fires (:mod:`lightning_tspike.graph.routes`). Then

    operations of layer l      r_l * f_l               as a share of the MACs of all layers that read spikes
    cost, of the network       max(0, sum_l r_l * f_l - target)
    cost, of each layer        sum_l max(0, r_l - target) * f_l

It is what :func:`lightning_tspike.analysis.energy.measure_energy` counts on the folded network (``integer_pools=True``)
where a layer reads the spikes of one neuron layer, through pools or not, or of several in different channels. Where
spikes of several layers are added up first, by a shortcut, +1 and -1 cancel, and it counts less; so it does where they
are concatenated and then pooled. It never counts more.

Amplitudes are divided out: smaller ones cost the same. The gradient is that of s, by the surrogate gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .._calls import in_backward, probing
from .._observe import unseen
from ..graph.routes import Pools, spike_routes
from ..graph.tracing import TraceError
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron

__all__ = [
    "CostPer",
    "OperationsBySize",
    "SpikeReadings",
    "SynapticOperations",
    "firing_rate",
    "synaptic_cost",
    "synaptic_operations",
]

CostPer: TypeAlias = Literal["network", "layer"]
"""Whether the target holds for all synaptic operations together, or for those of each neuron layer."""


def firing_rate(spikes: Tensor, amplitude: Tensor | float = 1.0) -> Tensor:
    """Mean of |s| by channel, differentiable by the spikes.

    Args:
        spikes: a * s, shape [T*B, C, ...].
        amplitude: a > 0, one number or shape [] or [C].

    Returns:
        The rates, shape [C], in at least single precision. Their gradient towards an amplitude that the spikes follow
        is 0.
    """
    dtype = torch.promote_types(spikes.dtype, torch.float32)
    inner = tuple(range(2, spikes.ndim))
    # image by image: one sum over all of a large tensor would lose its last spikes in single precision
    sums = torch.linalg.vector_norm(spikes, 1, dim=inner, dtype=dtype) if inner else spikes.abs().to(dtype)
    rates = sums.mean(0) / math.prod(spikes.shape[2:])
    if isinstance(amplitude, Tensor):
        amplitude = amplitude.to(spikes.dtype).to(dtype)  # as the spikes were rounded
    return rates / amplitude


def synaptic_operations(rates: Sequence[Tensor], fan_outs: Sequence[Tensor]) -> Tensor:
    """Synaptic operations of each layer: rate times fan-out, summed over channels.

    Args:
        rates: For each layer the mean of |s|, shape [C].
        fan_outs: For each layer how many synapses the spikes of a channel reach in all, shape [C], in any unit.

    Returns:
        Shape [L], in that unit.
    """
    return torch.stack([(rate * fan_out).sum() for rate, fan_out in zip(rates, fan_outs, strict=True)])


def synaptic_cost(
    operations: Tensor,
    most: Tensor,
    target: float | None = None,
    per: CostPer = "network",
    *,
    seen: Tensor | None = None,
) -> Tensor:
    """What synaptic operations beyond a target cost.

    Args:
        operations: Those of each layer as a share of all MACs, r_l * f_l, shape [L].
        most: The same where every neuron fires at every time step, f_l, shape [L].
        target: Share of the MACs that costs nothing; None for 0.
        per: Whether that is for all layers together or for each.
        seen: ``operations`` over the batches of all processes, which decide on which side of the target they are; by
            default those given. Then the mean of the processes' gradients is that of their batches in one.

    Returns:
        The cost, shape [].
    """
    if target is None:
        return operations.sum()
    seen = (operations if seen is None else seen).detach()
    if per == "network":
        beyond, is_beyond = operations.sum() - target, seen.sum() > target
    else:
        beyond, is_beyond = operations - target * most, seen > target * most
    return torch.where(is_beyond, beyond, torch.zeros_like(beyond)).sum()


class SynapticOperations:
    """Counts the synaptic operations of a network in training; made once for a size of images.

    Args:
        network: Any :class:`lightning_tspike.SpikingNetwork`; its graph says who reads whose spikes.
        images: Images or frames of that size, as the network takes them; the first is traced.

    Attributes:
        neurons: Names of the L neuron layers whose spikes a convolution or linear layer reads, as they are executed.
        readers: Names of those convolutions and linear layers.
        most: For each of ``neurons`` its operations if all of them fired at every time step, as a share of the readers'
            MACs, shape [L].

    Raises:
        TraceError: The network could not be traced, or nothing in it reads spikes.

    Example:
        >>> operations = SynapticOperations(network, images)
        >>> with operations.counting() as readings:
        ...     logits = network(images)
        >>> cost = synaptic_cost(operations.shares(readings), operations.most, target=0.1)
        >>> loss = cross_entropy(logits, labels) + cost
    """

    def __init__(self, network: SpikingNetwork, images: Tensor) -> None:
        try:
            routes = spike_routes(network.trace(images[:1]), network.model)
        except TraceError as error:
            raise TraceError(
                f"synaptic operations are counted by the network's graph, which says who reads whose spikes: {error}"
            ) from error
        if not routes.routes:
            raise TraceError(
                f"{type(network.model).__name__} has no convolution or linear layer that reads spikes, so that there "
                "are no synaptic operations to count"
            )
        self.neurons, self.readers = routes.neurons, routes.layers
        neurons = network.neurons()
        layers = {name: neurons[name] for name in self.neurons}
        self._pools = {layers[name]: pools for name, pools in routes.pools.items()}
        self._places = [(layers[route.neuron], route.call, route.pools) for route in routes.routes]
        dtype = torch.promote_types(next(network.parameters()).dtype, torch.float32)
        self._fan_outs = [(route.synapses / routes.macs).to(images.device, dtype) for route in routes.routes]
        numbers = [self.neurons.index(route.neuron) for route in routes.routes]
        self._layer_of = torch.tensor(numbers, device=images.device)
        self.most = self._by_layer(torch.stack([fan_out.sum() for fan_out in self._fan_outs]))

    @contextmanager
    def counting(self) -> Iterator[SpikeReadings]:
        """Count in the call of the network that is made within, in this thread; compiled or not."""
        readings = self.readings()
        with probing(readings):
            yield readings

    def readings(self) -> SpikeReadings:
        """New ones, to be shown the neurons and spikes of one call of the network."""
        return SpikeReadings(self._pools)

    def shares(self, readings: SpikeReadings) -> Tensor:
        """Operations of each neuron layer as a share of the MACs of all layers that read spikes.

        Returns:
            Shape [L], differentiable where the call was; the sum over the layers is the network's share.

        Raises:
            RuntimeError: The network was not called.
        """
        calls = readings.by_call()
        if not calls:
            raise RuntimeError("no spikes were counted: call the network within counting(), in the same thread")
        # what does not run in training sends no spikes
        rates = [
            calls[layer, call][pools] if (layer, call) in calls else torch.zeros_like(fan_out)
            for (layer, call, pools), fan_out in zip(self._places, self._fan_outs, strict=True)
        ]
        return self._by_layer(synaptic_operations(rates, self._fan_outs))

    def _by_layer(self, operations: Tensor) -> Tensor:
        """Sum over the calls of each layer, [calls] -> [L]."""
        return operations.new_zeros(len(self.neurons)).index_add(0, self._layer_of, operations)


class OperationsBySize:
    """What counts synaptic operations, made when images of another size come along."""

    def __init__(self) -> None:
        self._known: dict[Any, SynapticOperations] = {}

    def of(self, network: SpikingNetwork, images: Tensor) -> SynapticOperations:
        """That for these images or frames; raises as :class:`SynapticOperations`."""
        size = images.shape[-len(network.input_size) :], images.device
        if size not in self._known:
            # training must not miss what a model draws while it is traced, nor callbacks see that run
            with torch.random.fork_rng(devices=[]), unseen():
                self._known[size] = SynapticOperations(network, images)
        return self._known[size]


class SpikeReadings:
    """Firing rates of neuron layers, taken where and when they run; a probe (:mod:`lightning_tspike._calls`).

    Args:
        pools: For each layer the pools behind which its spikes are counted.
    """

    def __init__(self, pools: Mapping[SpikingNeuron, Sequence[Pools]]) -> None:
        self._pools = pools
        self._read: list[tuple[SpikingNeuron, list[Tensor]]] = []

    def __call__(self, neuron: SpikingNeuron, spikes: Tensor) -> None:
        if neuron not in self._pools:
            return
        rates = []
        for pools in self._pools[neuron]:
            pooled = spikes
            for pool in pools:
                pooled = pool(pooled)
            rates.append(firing_rate(pooled, neuron.amplitude))
        if torch.compiler.is_compiling() or not in_backward():
            self._read.append((neuron, rates))

    def by_call(self) -> dict[tuple[SpikingNeuron, int], list[Tensor]]:
        """For each call of a layer, counted from 0: its rate by channel, [C], behind each of the pools."""
        count: Counter[SpikingNeuron] = Counter()
        calls = {}
        for neuron, rates in self._read:
            calls[neuron, count[neuron]] = rates
            count[neuron] += 1
        return calls
