"""Where rounding would decide whether a neuron fires, so that the fold must not change how anything is rounded.

A neuron that does not leak and resets softly adds up its inputs and subtracts thresholds. When its input is x at one
step and -x at a later one, what is left is a whole number of thresholds, whatever x is: a tie. In numbers of finite
precision (x - theta) - x is theta or its neighbour, depending on the digits of x; with x / g and theta / g in their
place it may be the other one. (A neuron of several levels subtracts even multiples of theta and fires at odd ones: what
is left lies halfway between.) Inputs cancel like this where spikes reach the neuron through operations that are odd,
f(-s) = -f(s): pools, sums, convolutions without bias. A bias or a norm in between leaves no such ties.

Scaling by a power of two changes no digit. So here a gauge is a power of two or 1; an amplitude that is none is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neurons import SpikingNeuron
from .layer_rules import layer_of, layer_rule_of
from .rules import Join, rule_of

__all__ = ["is_power_of_two", "tied_ids"]


def tied_ids(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    ids: Mapping[fx.Node, Any],
    is_constant: Callable[[fx.Node], bool],
) -> Tensor:
    """Ids of all gauges on the way from spikes to a neuron whose inputs can cancel, shape [N].

    Args:
        graph: The traced graph.
        modules: Of the model, by name.
        ids: Of each node's gauges.
        is_constant: Whether a node is a tensor of gauge 1 whatever comes of the others.
    """
    on_the_way: dict[fx.Node, list[Tensor]] = {}  # nodes that are odd functions of spikes -> ids from these to them
    tied = [torch.zeros(0, dtype=torch.int64)]
    for node in graph.nodes:
        layer = layer_of(node, modules)
        if layer is not None and isinstance(layer[0], SpikingNeuron):
            neuron, x = layer
            remembers_all = float(torch.as_tensor(neuron.decay).detach()) == 1
            if neuron.reset == "soft" and neuron.levels == 1 and remembers_all:
                tied += on_the_way.get(x, [])
            on_the_way[node] = list(_flat(ids[node]))
            continue
        if layer is not None:
            odd_in = [layer[1]] if layer_rule_of(layer[0]).is_odd(layer[0]) else []
        else:
            rule = rule_of(node, modules, is_constant) if node in ids else None
            odd_in = [n for n in node.all_input_nodes if n in ids] if rule else []
            if not isinstance(rule, Join):  # what is no summand may be a fixed factor, filter or slope
                odd_in = [n for n in odd_in if n.op != "get_attr"]
        if odd_in and all(n in on_the_way for n in odd_in):
            on_the_way[node] = [some for n in odd_in for some in on_the_way[n]] + list(_flat(ids[node]))
    return torch.cat(tied).unique()


def is_power_of_two(numbers: Tensor) -> Tensor:
    """Whether each positive number is one, [N] -> [N]."""
    return torch.frexp(numbers).mantissa == 0.5


def _flat(ids: Any) -> Iterator[Tensor]:
    """Each tensor of a nested list of ids, as [N]."""
    if isinstance(ids, Tensor):
        yield ids.flatten()
    else:
        for item in ids:
            yield from _flat(item)
