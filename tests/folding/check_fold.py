"""What a user expects of a fold, in one check."""

from __future__ import annotations

import copy

import torch

from lightning_tspike.folding import FoldReport, fold
from lightning_tspike.network import SpikingNetwork


def check_fold(network: SpikingNetwork, x: torch.Tensor, *, all_fold: bool = True, **options: bool) -> FoldReport:
    """Same logits, original untouched, no amplitudes left, bare spikes: all that a user expects of a fold."""
    before = copy.deepcopy(network.state_dict())
    folded, report = fold(network, x, **options)
    expected, got = network(x, per_step=True), folded(x, per_step=True)
    assert expected.std(1).mean() > 0.01  # the images matter: spikes reach the logits
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert report.deviation <= 1e-9
    assert len(report.neurons) == len(network.neurons())
    assert not report.silent
    spikes = outputs(folded, x)
    assert set(spikes) == set(network.neurons())
    for neuron in report.neurons:
        if neuron.folded:
            assert {-1, 0, 1} >= set(spikes[neuron.name].unique().tolist()) > {0}, neuron.name
    kept = {name.removesuffix(".raw_amplitude") for name in folded.model.state_dict() if "raw_amplitude" in name}
    assert kept == set(report.kept)
    assert not kept or not all_fold
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return report


def outputs(network: SpikingNetwork, x: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        neuron.register_forward_hook(lambda _m, _a, out, name=name: seen.__setitem__(name, out))
        for name, neuron in network.neurons().items()
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return seen
