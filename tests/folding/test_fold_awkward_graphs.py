"""The fold of networks that nobody would build for it: exact, or left alone and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import AvgPool2dSame
from torch import nn

from lightning_tspike.folding import FoldError, fold
from lightning_tspike.network import SpikingNetwork, ternarize
from tests.folding.check_fold import check_fold


def test_product_of_spikes_keeps_what_cannot_fold(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    """A product of two signals has no gauge of its own: those neurons are named, and the rest is still exact."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv1, self.conv2 = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
            self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act1(self.stem(x))
            return self.fc((self.act2(self.conv1(x)) * self.act3(self.conv2(x))).mean((2, 3)))

    network = randomize(ternarize(Gated(), 2, freeze_cancelled=False, input_size=(3, 8, 8)))
    report = check_fold(network, torch.randn(2, 3, 8, 8, dtype=torch.float64), all_fold=False)
    assert report.kept == ["act2", "act3"]
    assert all(name in str(report) for name in report.kept)


class _Branches(nn.Module):
    """Neurons that add up, a norm behind a pool, a shared convolution, a norm without weights, spikes into a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.act1, self.act2, self.act3, self.act4 = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.norm, self.plain_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.stem(x))
        x = self.act2(self.norm(self.pool(x)))  # norm reads a gauge
        x = self.act3(self.plain_norm(self.conv(x)) + x)  # norm without weights writes one
        x = x + self.act4(self.conv(x))  # the same convolution again; two neurons add up
        return self.fc((x * torch.sigmoid(x)).mean((2, 3)))


def test_awkward_wiring_is_exact_or_named() -> None:
    network = ternarize(_Branches(), 3, freeze_cancelled=False, input_size=(2, 8, 8)).double().eval()
    assert network.model.act3.raw_amplitude is not network.model.act4.raw_amplitude  # tied in vain: the gate pins them
    for i, neuron in enumerate(network.neurons().values()):
        neuron.raw_amplitude.data.fill_(0.6 + 0.3 * i)
    network.model.plain_norm.running_var.fill_(0.3)
    network.model.norm.running_mean.fill_(0.2)
    folded, report = fold(network)
    assert report.deviation <= 1e-9
    assert {neuron.name for neuron in report.neurons if not neuron.folded} == {"act2", "act3", "act4"}
    assert folded.model.act1.raw_amplitude is None


@pytest.mark.parametrize(
    "shift", [lambda x: x + 0.3, lambda x: torch.add(x, other=0.3), lambda x: x.add(0.3), lambda x: 1 - x, torch.exp]
)
def test_operations_without_a_gauge_are_left_alone(shift: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
            self.act1, self.act2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = shift(self.act1(self.conv(3 * x)))
            return self.fc(self.act2(x).mean((2, 3)))

    network = ternarize(Shifted(), 2, input_size=(2, 6, 6)).double()
    network.model.act1.raw_amplitude.data.fill_(0.7)
    network.model.act2.raw_amplitude.data.fill_(1.6)
    _, report = fold(network)
    assert {neuron.name: neuron.folded for neuron in report.neurons} == {"act1": False, "act2": True}


class _SharedWeight(nn.Module):
    """Two convolutions with one weight, and one convolution called on the image and on spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.conv3.weight = self.conv2.weight
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act2(self.conv2(self.conv1(self.act1(self.conv1(x)))))
        return self.fc(self.act3(self.conv3(x)).mean((2, 3)))


def test_shared_weights_are_left_alone_and_the_worst_input_counts() -> None:
    network = ternarize(_SharedWeight(), 2, input_size=(3, 8, 8)).double()
    for i, neuron in enumerate(network.neurons().values()):
        neuron.raw_amplitude.data.fill_(0.6 + 0.3 * i)
    _, report = fold(network)
    assert {n.name: n.folded for n in report.neurons}["act2"] is False  # conv3 reads it, and shares its weight
    assert next(layer.holds for layer in report.layers if layer.name == "conv1") == "real"


def _permuted(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x[:, m.order]


def _number(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x / (1 + x.abs().max().item())


def _borrowed(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + nn.functional.conv2d(x, m.conv.weight, padding=1)  # without the bias: no call of the module


def _indices(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.max_pool2d(x, 2, return_indices=True)[0]


def _written(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.narrow(1, 0, 2).add_(0.3)
    return y


def _shuffled(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.shuffle(x)


@pytest.mark.parametrize("amplitude", ["layer", "channel"])
@pytest.mark.parametrize(
    ("follow", "folds"),
    [(_permuted, True), (_number, False), (_borrowed, False), (_indices, False), (_written, False), (_shuffled, True)],
)
def test_traps(
    randomize: Callable[[SpikingNetwork], SpikingNetwork],
    follow: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    folds: bool,
    amplitude: str,
) -> None:
    """Indices that are tensors, numbers made of tensors, borrowed weights, two results, writing into a view."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.act1, self.act2, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(4, 3)
            self.shuffle = nn.ChannelShuffle(2)
            self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.act2(self.conv(follow(self, self.act1(self.stem(x))))).mean((2, 3)))

    network = randomize(ternarize(Net(), 2, amplitude=amplitude, freeze_cancelled=False, input_size=(3, 8, 8)))
    report = check_fold(network, torch.randn(2, 3, 8, 8, dtype=torch.float64), all_fold=False)
    assert ("act1" not in report.kept) == folds
    assert "act2" not in report.kept


def test_a_model_that_cannot_be_traced() -> None:
    class Untraceable(_Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.from_numpy(x.detach().numpy()))

    network = ternarize(Untraceable(), 2, input_size=(2, 8, 8))
    with pytest.raises(FoldError, match="Untraceable could not be traced"):
        fold(network)


class _SamePool(nn.Module):
    """An average pool of timm's, a subclass of torch's whose forward pads and heeds no other divisor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), AvgPool2dSame(2, 2)
        self.conv2, self.act2, self.head = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act2(self.conv2(self.pool(self.act1(self.conv1(x))))).mean((2, 3)))


def test_a_subclass_of_a_pool_is_followed_through_its_own_forward() -> None:
    network = ternarize(_SamePool(), 2, input_size=(1, 9, 9)).double()
    for neuron in network.neurons().values():
        torch.nn.init.constant_(neuron.raw_amplitude, 1.3)
    report = check_fold(network, torch.randn(2, 1, 9, 9, dtype=torch.float64), integer_pools=True)
    assert report.sum_pools == ()
