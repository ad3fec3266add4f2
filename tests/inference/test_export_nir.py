"""NIR files: read back and simulated by their equations, the neurons fire as in the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_tspike as lt
from lightning_tspike._observe import observing
from lightning_tspike.inference import ExportError, export
from lightning_tspike.network import SpikingNetwork

T = 4
Build = Callable[..., SpikingNetwork]


def simulate(graph: Any, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [T, B, K] and spikes [T, B, ...] by node, stepped by dt = 1 as NIR defines its nodes."""
    membranes: dict[str, Tensor] = {}
    seen: dict[str, list[Tensor]] = {}

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(values).double()

    def value_of(name: str, x: Tensor) -> Tensor:
        node = graph.nodes[name]
        match type(node).__name__:
            case "LIF" | "IF":
                v = membranes.get(name, torch.zeros_like(x))
                if isinstance(node, nir.LIF):
                    v = v + (tensor(node.v_leak) - v + tensor(node.r) * x) / tensor(node.tau)
                else:
                    v = v + tensor(node.r) * x
                fires = v > tensor(node.v_threshold)
                membranes[name] = torch.where(fires, tensor(node.v_reset), v)
                return fires.double()
            case "Conv2d":
                options = [tuple(map(int, o)) for o in (node.stride, node.padding, node.dilation)]
                return F.conv2d(x, tensor(node.weight), tensor(node.bias), *options, int(node.groups))
            case "AvgPool2d":
                return F.avg_pool2d(x, *(tuple(map(int, o)) for o in (node.kernel_size, node.stride, node.padding)))
            case "Affine":
                return F.linear(x, tensor(node.weight), tensor(node.bias))
            case "Flatten":
                return x.flatten(1 + int(node.start_dim))
            case "Output":
                return x
        raise AssertionError(f"{name}: {node}")

    for frame in frames.unbind(1):
        values = {"input": frame}

        def of(name: str, values: dict[str, Tensor] = values) -> Tensor:
            if name not in values:
                values[name] = value_of(name, sum(of(source) for source, target in graph.edges if target == name))
            return values[name]

        of("output")
        for name, value in values.items():
            seen.setdefault(name, []).append(value)
    steps = {name: torch.stack(values) for name, values in seen.items()}
    return steps["output"], {name: steps[name] for name in membranes}


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tspike_vgg_small", {}),
        ("tspike_resnet_small", {"amplitude": "channel", "decay": 0.6}),  # thresholds by channel after folding
        ("tspike_sew_resnet_small", {"decay": 1.0}),
        ("tspike_ms_resnet_small", {"learn_decay": True, "learn_threshold": True}),
    ],
)
def test_neurons_fire_as_in_the_network(lively: Build, tmp_path: Path, backbone: str, options: dict[str, Any]) -> None:
    network = lively(backbone, num_classes=5, timesteps=T, neuron="binary_lif", **options)
    written = export(network, tmp_path / "net.nir", "nir", example=torch.randn(1, 3, 16, 16), name="mine")
    graph = nir.read(written.path)
    frames = torch.randn(3, T, 3, 16, 16, dtype=torch.float64)
    logits, spikes = simulate(graph, frames)
    folded, _ = lt.fold(network, merge_bn=True)
    expected: dict[str, Tensor] = {}
    keep = lambda name, _neuron, _x, out: expected.update({name.replace(".", "_"): out})  # noqa: E731
    with torch.no_grad(), observing(folded.neurons(), keep):
        wanted = folded(frames, per_step=True)
    assert spikes.keys() == expected.keys()
    for name, fired in expected.items():
        assert fired.any(), name
        assert torch.equal(spikes[name].flatten(0, 1), fired), name
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    assert graph.metadata["dt"] == 1
    facts = json.loads(graph.metadata["facts"])
    assert (facts["name"], facts["timesteps"], facts["computes"]) == ("mine", T, "one time step")


def small(*layers: nn.Module, **options: Any) -> SpikingNetwork:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), *layers, nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 2, 8, 8))
    return lt.ternarize(model, T, input_size=(2, 8, 8), **{"neuron": "binary_lif", **options})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: small(neuron="ternary_lif"), "NIR has no neuron that fires -1, as 1 .*neuron='binary_lif'"),
        (lambda: small(neuron="quantized", levels=2), r"NIR has no neuron that fires -1, as 1 \(Quantized\) does"),
        (lambda: small(reset="soft"), "reset to a fixed potential, 1 has reset='soft'"),
        (lambda: small(nn.MaxPool2d(2)), r"NIR has no node for MaxPool2d \(2\)"),
        (lambda: small(nn.BatchNorm2d(4)), r"NIR has no node for BatchNorm2d \(2\); it is not part of the layer"),
    ],
)
def test_what_nir_cannot_say(tmp_path: Path, network: Callable[[], SpikingNetwork], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(network(), tmp_path / "net.nir", "nir")
    assert list(tmp_path.iterdir()) == []
