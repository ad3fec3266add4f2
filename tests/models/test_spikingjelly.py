"""Networks of SpikingJelly: the library's own logits, from its own weights, in all of its neurons that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tspike import SpikingNetwork, fold, zoo
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.cli.main import main
from lightning_tspike.models import ForeignWeightsError, JellyNeuron, import_spikingjelly

T = 3
NEURONS: list[dict[str, Any]] = [
    {"name": "IFNode", "v_threshold": 0.8},
    {"name": "IFNode", "v_reset": None},
    {"name": "LIFNode", "tau": 2.0},
    {"name": "LIFNode", "tau": 3.0, "decay_input": False, "v_reset": -0.25, "v_threshold": 0.5},
    {"name": "LIFNode", "tau": 1.5, "v_reset": None, "v_threshold": 0.5},
    {"name": "ParametricLIFNode"},
    {"name": "ParametricLIFNode", "decay_input": False, "v_reset": None},
    {"name": "TernaryIFNode", "v_reset": None},
    {"name": "TernaryLIFNode", "tau": 4 / 3, "decay_input": False},
]


def jelly(name: str, neuron: dict[str, Any], **options: Any) -> nn.Module:
    """A network of the library, in float64, with lively weights and statistics of norms."""
    activation_based = pytest.importorskip("spikingjelly.activation_based")
    models = pytest.importorskip(f"spikingjelly.activation_based.model.{name.split('_')[0]}_resnet")
    words = {key: value for key, value in neuron.items() if key != "name"}
    kind = getattr(activation_based.neuron, neuron["name"])
    net: nn.Module = getattr(models, name)(spiking_neuron=kind, num_classes=5, **options, **words)
    activation_based.functional.set_step_mode(net, "m")
    torch.manual_seed(0)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
                value.normal_(0, 0.3)
            elif key.endswith((".w", "running_var")):
                value.uniform_(0.5, 1.5)
    return net.double().eval()


@torch.no_grad()
def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    return net(x.expand(T, *x.shape)).mean(0)  # type: ignore[no-any-return]


def images() -> Tensor:
    return torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check(net: nn.Module, ours: SpikingNetwork) -> None:
    x = images()
    with firing_rates(ours) as rates:
        expected, got = logits_of(net, x), ours(x)
    assert len(rates) == sum("sn" in name.rpartition(".")[2] for name, _ in net.named_modules())
    assert sum(rate.total > 0 for rate in rates.values()) > len(rates) / 2  # spikes, not silence, are what agrees
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("number", range(len(NEURONS)), ids=lambda i: NEURONS[i]["name"])
def test_logits_are_those_of_the_library(number: int) -> None:
    name, neuron = ("spiking_resnet18", "sew_resnet18")[number % 2], NEURONS[number]
    net = jelly(name, neuron, **({"cnf": "ADD"} if name.startswith("sew") else {}))
    check(net, import_spikingjelly(net.state_dict(), name, JellyNeuron(**neuron), timesteps=T))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cnf"),
    [("sew_resnet18", "IAND"), ("sew_resnet50", "AND"), ("spiking_resnext50_32x4d", None)],
)
def test_blocks_of_all_kinds(name: str, cnf: str | None) -> None:
    neuron = {"name": "LIFNode", "v_threshold": 0.5}
    net = jelly(name, neuron, **({"cnf": cnf} if cnf else {}))
    ours = import_spikingjelly(net.state_dict(), name, JellyNeuron(**neuron), cnf=cnf or "ADD", timesteps=T)
    check(net, ours)


@pytest.mark.slow
def test_imported_networks_fold_whole_and_train_on() -> None:
    net = jelly("sew_resnet18", {"name": "IFNode"}, cnf="ADD")
    ours, x = import_spikingjelly(net.state_dict(), "sew_resnet18", timesteps=T), images()
    folded, report = fold(ours, x)
    assert not report.kept
    assert report.addition_only_macs > 0.9
    torch.testing.assert_close(folded(x), logits_of(net, x))
    ours.train()(x).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


@pytest.mark.slow
def test_command_writes_a_folder_that_the_zoo_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = jelly("spiking_resnet18", {"name": "LIFNode", "v_reset": None, "v_threshold": 0.5}).float()
    file = tmp_path / "net.pth"
    torch.save({"model": {f"module.{key}": value for key, value in net.state_dict().items()}, "epoch": 3}, file)
    main(["import-spikingjelly", str(file), "--network=spiking_resnet18", "--neuron=LIFNode", "--v-reset=none",
          "--v-threshold=0.5", f"--timesteps={T}"])  # fmt: skip
    assert f"written: {tmp_path / 'net.folded'}" in capsys.readouterr().out
    x = images().float()
    torch.testing.assert_close(zoo.load(tmp_path / "net.folded")(x), logits_of(net, x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JellyNeuron("QIFNode"), "neuron must be one of IFNode, .*, got 'QIFNode'"),
        (lambda: JellyNeuron("LIFNode", tau=1.0), "tau must be a number above 1, got 1.0"),
        (lambda: JellyNeuron(v_threshold=0.5, v_reset=0.5), "v_threshold must be above v_reset"),
        (lambda: JellyNeuron("TernaryIFNode", v_reset=0.1), "ternary neurons are reset to 0"),
        (lambda: import_spikingjelly({}, "spikformer"), "network must be one of spiking_resnet18"),
        (lambda: import_spikingjelly({}, "sew_resnet50", cnf="IAND"), "cnf='IAND' of bottlenecks"),
        (lambda: import_spikingjelly({}, "sew_resnet18"), "there is no state_dict in it"),
        (lambda: import_spikingjelly({"a.w": torch.ones(1)}, "sew_resnet18"), "not the keys of a sew_resnet18"),
    ],
)
def test_what_cannot_be_rebuilt_says_so(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_weights_of_another_depth_are_named() -> None:
    weights = jelly("spiking_resnet18", {"name": "IFNode"}).state_dict()
    with pytest.raises(ForeignWeightsError, match=r"not a resnet34: missing \['layer1.2"):
        import_spikingjelly(weights, "spiking_resnet34")
    weights = jelly("spiking_resnet18", {"name": "ParametricLIFNode"}).state_dict()
    with pytest.raises(ForeignWeightsError, match=r"not understood \['act1.w'"):
        import_spikingjelly(weights, "spiking_resnet18")
