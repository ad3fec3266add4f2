"""Spikes that cancel in a neuron which forgets nothing: whether it fires is the same before and after folding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tspike.folding import FoldError, fold, verify
from lightning_tspike.folding import absorb as folding
from lightning_tspike.network import SpikingNetwork, ternarize

BETWEEN = {
    "max pool": lambda: [nn.MaxPool2d(2)],
    "average pool": lambda: [nn.AvgPool2d(2)],
    "conv without bias": lambda: [nn.Conv2d(4, 4, 1, bias=False)],
    "conv": lambda: [nn.Conv2d(4, 4, 1)],
    "norm": lambda: [nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)],
}


def network(between: str, seed: int = 0, amplitude: float | None = None, **options: object) -> SpikingNetwork:
    """Convolution, norm, neuron, something, neuron, classifier; in float64."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *BETWEEN[between](), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    options = {"decay": 1.0, "reset": "soft", **options}
    made = ternarize(model, 4, input_size=(2, 8, 8), freeze_cancelled=False, **options).double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.2)
    for neuron in made.neurons().values():
        nn.init.uniform_(neuron.raw_amplitude, 0.5, 1.5)
        if amplitude is not None:
            nn.init.constant_(neuron.raw_amplitude, amplitude)
    return made


def frames(seed: int) -> torch.Tensor:
    return torch.randn(4, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("between", ["max pool", "average pool", "conv without bias"])
def test_ties_fall_alike_before_and_after(between: str) -> None:
    for seed in range(12):
        net = network(between, seed)
        folded, report = fold(net)
        assert "2" in report.tied
        assert set(report.tied) <= set(report.kept)
        assert "kept so that ties at a threshold stay as they are: 2" in str(report)
        x = frames(seed)
        torch.testing.assert_close(folded(x, per_step=True), net(x, per_step=True), rtol=1e-9, atol=1e-9)
        # nor does rounding to float32 change a tie
        net, folded = net.float(), folded.float()
        torch.testing.assert_close(folded(x.float(), per_step=True), net(x.float(), per_step=True))


@pytest.mark.parametrize("between", ["max pool", "average pool", "conv without bias"])
@pytest.mark.parametrize("options", [{"reset": "hard"}, {"decay": 0.25}, {"levels": 2, "threshold": 0.2}])
def test_other_neurons_have_no_such_ties(between: str, options: dict[str, object]) -> None:
    for seed in range(4):
        net = network(between, seed, **options)
        folded, report = fold(net)
        assert not report.kept
        assert not report.tied
        x = frames(seed)
        torch.testing.assert_close(folded(x, per_step=True), net(x, per_step=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("between", ["conv", "norm"])
def test_a_bias_or_a_norm_leaves_no_ties(between: str) -> None:
    assert not fold(network(between))[1].kept


def test_powers_of_two_fold_to_the_bit() -> None:
    net = network("max pool", amplitude=0.5)
    folded, report = fold(net)
    assert not report.kept
    x = frames(0)
    assert torch.equal(folded(x), net(x))


def test_pools_that_would_sum_stay_where_their_division_decides_ties() -> None:
    net = network("average pool", amplitude=2.0)
    pool = net.model[3]
    assert fold(net, integer_pools=True)[1].sum_pools == ("3",)  # a quarter changes no digit
    pool.kernel_size, pool.stride = 3, 3
    folded, report = fold(net, integer_pools=True)
    assert report.sum_pools == ()
    assert not report.kept
    assert torch.equal(folded(frames(1)), net(frames(1)))


class _Residual(nn.Module):
    """Spikes added to spikes go to a neuron in the one way, with a bias among them in the other."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2, self.fc = nn.Conv2d(4, 4, 1, bias=bias), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.conv1(x))
        return self.fc(self.act2(x + 2 * self.conv2(x).flip(-1)).mean((2, 3)))


@pytest.mark.parametrize("bias", [False, True])
def test_sums(bias: bool) -> None:
    net = ternarize(_Residual(bias), 4, input_size=(2, 8, 8), decay=1.0, reset="soft", freeze_cancelled=False)
    nn.init.constant_(net.model.act1.raw_amplitude, 0.7)
    assert fold(net)[1].tied == (() if bias else ("act1",))


def test_frames_are_verified_though_the_example_is_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were ties forgotten, folding would say so instead of giving another network."""
    monkeypatch.setattr(folding.GaugeClasses, "gauges", _gauges_without_ties)
    with pytest.raises(FoldError, match="first layer that deviates: 4"):
        fold(network("max pool", seed=27), torch.randn(2, 2, 8, 8, dtype=torch.float64))


_gauges = folding.GaugeClasses.gauges


def _gauges_without_ties(self: folding.GaugeClasses) -> torch.Tensor:
    self._tied = self._tied[:0]
    return _gauges(self)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight", float("nan"), "0.weight holds NaN or infinite values"),
        ("1.running_mean", float("inf"), "1.running_mean holds NaN or infinite values"),
        ("1.running_var", -1.0, "1.running_var holds negative variances"),
        ("2.raw_amplitude", float("nan"), "2.raw_amplitude holds NaN or infinite values"),
    ],
)
def test_weights_that_silence_neurons_are_refused(name: str, value: float, message: str) -> None:
    """A neuron that sees NaN is silent, so the logits are finite all the same."""
    net = network("max pool")
    net.model.state_dict()[name].fill_(value)
    if name != "2.raw_amplitude":
        assert verify(net, net, frames(0)) == 0
    with pytest.raises(FoldError, match=f"not finite: {message}"):
        fold(net)
