"""Random small networks fold exactly or say what they leave; none ever deviates silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_tspike.folding import fold
from lightning_tspike.network import SpikingNetwork, ternarize

STEPS = ("conv", "grouped", "depthwise", "shared conv", "bn", "plain bn", "act", "shared act", "max pool", "avg pool",
         "add", "cat", "scale", "gate", "shift", "shuffle", "pad", "relu")  # fmt: skip
Step = tuple[str, int, int]
NEURONS: list[dict[str, Any]] = [
    {},
    {"neuron": "ternary_if", "levels": 2, "reset": "soft", "threshold": 0.3},
    {"neuron": "quantized", "levels": 4, "threshold": 0.2},
]


class RandomGraph(nn.Module):
    """Each step reads earlier results, chosen by two numbers, and appends one; the last ones go to the classifier."""

    def __init__(self, steps: list[Step], flatten: bool) -> None:
        super().__init__()
        self.steps, self.flatten = steps, flatten
        self.stem, self.layers = nn.Conv2d(2, 4, 3, padding=1), nn.ModuleList()
        self.shared_conv, self.shared_act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.act = nn.ReLU()
        channels = [4]
        for kind, i, j in steps:
            c = channels[i % len(channels)]
            layer: nn.Module = nn.Identity()
            if kind == "conv":
                layer, c = nn.Conv2d(c, 4, 3, padding=1, bias=bool(j % 2)), 4
            elif kind == "grouped":
                layer, c = nn.Conv2d(c, 2 * c, 1, groups=2), 2 * c
            elif kind == "depthwise":
                layer = nn.Conv2d(c, c, 3, padding=1, groups=c)
            elif kind == "bn":
                layer = nn.BatchNorm2d(c)
            elif kind == "plain bn":
                layer = nn.BatchNorm2d(c, affine=False)
            elif kind == "act":
                layer = nn.ReLU()
            elif kind == "cat":
                c += channels[j % len(channels)]
            if kind in ("shared conv", "shared act") and c != 4:
                layer, c = nn.Conv2d(c, 4, 1), 4
            self.layers.append(layer)
            channels.append(c)
        size = 16 if flatten else 1  # 8 x 8 pixels, pooled to 4 x 4
        self.fc = nn.Linear(channels[-1] * size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = [self.act(self.stem(x))]
        for (kind, i, j), layer in zip(self.steps, self.layers, strict=True):
            a, b = results[i % len(results)], results[j % len(results)]
            results.append(self.step(kind, layer, a, b))
        x = nn.functional.adaptive_avg_pool2d(results[-1], 4)
        return self.fc(x.flatten(1) if self.flatten else x.mean((2, 3)))

    def step(self, kind: str, layer: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        match kind:
            case "shared conv":
                return self.shared_conv(layer(a))
            case "shared act":
                return self.shared_act(layer(a))
            case "max pool":
                return nn.functional.max_pool2d(a, 3, 1, 1)
            case "avg pool":
                return nn.functional.avg_pool2d(a, 3, 1, 1)
            case "add":
                return a + b if a.shape == b.shape else a + a
            case "cat":
                return torch.cat([a, b], 1)
            case "scale":
                return 1.7 * a
            case "gate":
                return a * torch.sigmoid(b.mean(1, keepdim=True))
            case "shift":
                return a + 0.3
            case "shuffle":
                return a.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            case "pad":
                return nn.functional.pad(a, (1, 0, 0, 1))[..., :-1, 1:]
            case "relu":
                return torch.relu(a)
        return layer(a)


steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=9)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=steps,
    flatten=st.booleans(),
    amplitude=st.sampled_from(["layer", "channel"]),
    merge_bn=st.booleans(),
    neuron=st.sampled_from(NEURONS),
    seed=st.integers(0, 1000),
)
def test_random_graphs(
    randomize: Callable[[SpikingNetwork], SpikingNetwork],
    steps: list[Step],
    flatten: bool,
    amplitude: Any,
    merge_bn: bool,
    neuron: dict[str, Any],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = RandomGraph(steps, flatten)
    options = {"amplitude": amplitude, "freeze_cancelled": False, **neuron}
    network = randomize(ternarize(model, 2, input_size=(2, 8, 8), **options))
    folded, report = fold(network, torch.randn(2, 2, 8, 8, dtype=torch.float64), merge_bn=merge_bn)

    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)  # other images than those it was verified on
    expected, got = network(x, per_step=True), folded(x, per_step=True)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max().clamp_min(1)
    called = {neuron.name for neuron in report.neurons}
    kept = {name for name, neuron in folded.neurons().items() if neuron.raw_amplitude is not None} & called
    assert kept == set(report.kept)
    may_stay = {"gate", "shift", "add", "shared conv", "shared act", "shuffle"}
    if not may_stay & {kind for kind, _, _ in steps}:
        assert not kept
