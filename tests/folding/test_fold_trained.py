"""Networks that were really trained, folded in float32: the same decisions on every test image."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.functional import per_channel
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.store.folder import read_folder

TRAINED = Path(__file__).parent / "trained"


def digits() -> tuple[Tensor, Tensor]:
    data = DigitsDataModule()
    data.setup("test")
    images, labels = zip(*data.test_dataloader(), strict=True)
    return torch.cat(images), torch.cat(labels)


def fashion_mnist(shared: Callable[[str], Path]) -> tuple[Tensor, Tensor]:
    def read(name: str, skip: int) -> np.ndarray:
        path = next(shared("data/fashion_mnist").rglob(name))
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skip)

    images = torch.from_numpy(read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).copy()).float() / 255
    return (images - 0.286) / 0.353, torch.from_numpy(read("t10k-labels-idx1-ubyte.gz", 8).copy()).long()


def run(network: SpikingNetwork, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Logits and firing rates by layer."""
    with torch.no_grad(), firing_rates(network) as rates:
        logits = torch.cat([network(batch) for batch in images.split(500)])
    return logits, {name: rate.total for name, rate in rates.items()}


def margins(network: SpikingNetwork, images: Tensor) -> Tensor:
    """Each image's least distance of a membrane potential from its threshold, in units of the threshold."""
    least = torch.full((len(images),), torch.inf)

    def look(neuron, args, _spikes) -> None:  # noqa: ANN001
        u = neuron.membrane_potential(args[0])
        theta = per_channel(neuron.firing_threshold, u)
        distance = ((u.abs() - theta).abs() / theta).unflatten(0, (network.timesteps, -1)).flatten(2)  # [T, B, rest]
        torch.minimum(least, distance.amin((0, 2)), out=least)

    handles = [neuron.register_forward_hook(look) for neuron in network.neurons().values()]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return least


@pytest.mark.parametrize("name", ["digits", "digits_channel", pytest.param("fashion_mnist", marks=pytest.mark.slow)])
def test_same_decisions_in_single_precision(name: str, shared: Callable[[str], Path]) -> None:
    images, labels = fashion_mnist(shared) if name == "fashion_mnist" else digits()
    network, _ = read_folder(TRAINED / name)
    folded, report = fold(network, images[:50])
    assert not report.kept
    assert not report.silent
    assert any(amplitude != 1 for neuron in report.neurons for amplitude in neuron.amplitude)

    before, rates_before = run(network, images)
    after, rates_after = run(folded, images)
    assert (before.argmax(1) == labels).double().mean() > 0.88  # it has learned something
    for layer, rate in rates_before.items():
        assert rates_after[layer] == pytest.approx(rate, abs=1e-5), layer
    # Images whose logits differ by more than rounding have a membrane potential within rounding of its threshold.
    differ = ((before - after).abs().amax(1) > 1e-4 * before.abs().amax(1)).nonzero().flatten()
    assert len(differ) < len(images) / 50
    assert not len(differ) or (margins(network, images[differ]) < 1e-5).all()
    changed = (before.argmax(1) != after.argmax(1)).nonzero().flatten()
    assert set(changed.tolist()) <= set(differ.tolist())
