"""Weights of the published code: golden logits and firing rates of its networks, and files that are something else."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_tspike import zoo
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.folding import fold
from lightning_tspike.models import ForeignWeightsError, import_official

NETWORKS = [f"{name}/{kind}" for name in ("resnet18_imagenet", "resnet20_cifar", "resnet19_cifar",
                                          "resnet20_cifar_modified")
            for kind in ("vanilla", "amplitude")]  # fmt: skip


def made(key: str, shape: list[int]) -> Tensor:
    """The weights that the golden numbers were computed with, made from their key."""
    r = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_mean"):
        return torch.from_numpy(r.normal(size=shape) * 0.1)
    if key.endswith("running_var"):
        return torch.from_numpy(r.uniform(0.5, 1.5, size=shape))
    if len(shape) == 1:
        return torch.from_numpy(
            r.uniform(0.5, 1.5, size=shape) if key.endswith("weight") else r.normal(size=shape) * 0.2
        )
    if key.endswith("weight"):
        return torch.from_numpy(r.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:])))
    return torch.ones(shape, dtype=torch.float64)


def golden(shared: Callable[[str], Path], name: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Facts, images and logits of one of the published code's networks, computed by that code in float64."""
    if name.startswith("resnet20_cifar_modified"):  # beside this file; its images are made as its weights are
        facts = json.loads((Path(__file__).parent / "golden/resnet20_cifar_modified.json").read_text())
        images = np.random.default_rng(zlib.crc32(b"x")).normal(size=(2, 3, 32, 32))
        own = {**facts[name], "state_dict": facts["state_dict"]}
        return own, torch.from_numpy(images), torch.tensor(own["logits"], dtype=torch.float64)
    arrays = np.load(shared("golden/official_networks.npz"))
    x, logits = (torch.from_numpy(arrays[f"{name}/{part}"]) for part in ("x", "logits"))
    return json.loads(shared("golden/official_networks.json").read_text())[name], x, logits


def own_neuron(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "conv1":  # the deep stem's
        return "act1" if parts[1] == "8" else ".".join(parts)
    act = {"relu": "act1", "relu1": "act1", "output_act": "act2"}[parts[-1]]
    return act if len(parts) == 1 else f"stages.{int(parts[0][-1]) - 1}.{parts[1]}.{act}"


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_networks(shared: Callable[[str], Path], name: str) -> None:
    facts, x, logits = golden(shared, name)
    weights = {key: made(key, shape) for key, shape in facts["state_dict"].items()}
    network = import_official(weights, facts["T"])

    used = sum(
        w.numel() for key, w in weights.items() if "running" not in key and "num_b" not in key and "scale" not in key
    )
    amplitudes = facts["amplitudes"]
    assert sum(p.numel() for p in network.parameters()) == used + len(amplitudes)
    for official, amplitude in amplitudes.items():
        network.model.get_submodule(own_neuron(official)).raw_amplitude.data.fill_(amplitude)
    with firing_rates(network) as rates, torch.no_grad():
        got = network(x)
    assert (got - logits).abs().max() <= 1e-9 * logits.abs().max()
    assert len(rates) == len(facts["positive_negative_rates"])
    for official, (positive, negative) in facts["positive_negative_rates"].items():
        rate = rates[own_neuron(official)]
        assert (rate.positive, rate.negative) == pytest.approx((positive, negative)), official

    folded, report = fold(network, x)
    assert not report.kept
    assert (folded(x) - logits).abs().max() <= 1e-9 * logits.abs().max()


def small(fire_ratio: bool = False) -> dict[str, Tensor]:
    """A state_dict as the published code would have for one block in each of two stages."""
    shapes = {"model.conv1.pool.weight": [4, 1, 3, 3], "model.fc.conv.weight": [3, 8], "model.fc.conv.bias": [3],
              "model.scale": [1, 1, 2048]}  # fmt: skip
    norms = {"model.bn1.conv": 4}
    for stage, (c_in, c) in enumerate(((4, 4), (4, 8)), start=1):
        block = f"model.layer{stage}.0"
        shapes |= {f"{block}.conv1.pool.weight": [c, c_in, 3, 3], f"{block}.conv2.pool.weight": [c, c, 3, 3]}
        norms |= {f"{block}.bn1.bn": c, f"{block}.bn2.bn": c}
    shapes["model.layer2.0.downsample.0.pool.weight"] = [8, 4, 1, 1]
    norms["model.layer2.0.downsample.1.bn"] = 8
    for name, c in norms.items():
        shapes |= {f"{name}.{part}": [c] for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = []
    weights = {key: made(key, shape).float() for key, shape in shapes.items()}
    if fire_ratio:
        names = ["relu", *(f"layer{i}.0.{act}" for i in (1, 2) for act in ("relu1", "output_act"))]
        weights |= {f"model.{name}.fire_ratio": torch.full((1,), 0.5 + 0.1 * i) for i, name in enumerate(names)}
    return weights


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model": w}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_in_all_their_forms(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], prefix: str) -> None:
    torch.save(wrap({prefix + key: value for key, value in small(fire_ratio=True).items()}), tmp_path / "a.pth")
    network = import_official(tmp_path / "a.pth", timesteps=2)
    assert network.config.backbone_kwargs == {"layers": (1, 1), "widths": (4, 8), "stem": "cifar"}
    amplitudes = [neuron.amplitude.item() for neuron in network.neurons().values()]
    assert amplitudes == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_deep_stem_of_other_widths_with_trained_amplitudes() -> None:
    weights = {
        key.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1"): value  # a pool comes first
        for key, value in small(fire_ratio=True).items()
        if not key.startswith(("model.conv1", "model.bn1", "model.relu"))
    }
    for i, width_in in ((0, 1), (3, 4), (6, 4)):
        weights[f"model.conv1.{i}.pool.weight"] = torch.randn(4, width_in, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"model.conv1.{i + 1}.conv.{part}"] = torch.ones(4)
        weights[f"model.conv1.{i + 2}.fire_ratio"] = torch.full((1,), 3.0 + i)
    network = import_official(weights, timesteps=2)
    own = {"layers": (1, 1), "widths": (4, 8), "stem": "deep", "shortcut": "avg"}
    assert network.config.backbone_kwargs == own
    amplitudes = {name: neuron.amplitude.item() for name, neuron in network.neurons().items()}
    assert [amplitudes[name] for name in ("conv1.2", "conv1.5", "act1", "stages.1.0.act2")] == pytest.approx(
        [3, 6, 9, 0.9]
    )
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.slow
def test_command_writes_a_folder_that_the_zoo_loads(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "a.pth")
    command = [sys.executable, "-c", "from lightning_tspike.cli.main import main; main()", "import-official", "a.pth"]
    result = subprocess.run([*command, "--timesteps=2"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "5 of 5 amplitudes folded" in result.stdout
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(zoo.load(tmp_path / "a.folded")(x), import_official(small(), 2)(x))


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in small().items() if name != key}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without("model.layer1.0.bn1.bn.weight"), r"missing \['stages.0.0.bn1.weight'\]"),
        (without("model.fc.conv.weight"), "not the keys of a residual network of the published code"),
        ({**small(), "model.layer1.0.extra.weight": torch.zeros(1)}, r"not understood \['stages.0.0.extra.weight'\]"),
        ({**small(), "model.fc.conv.bias": torch.zeros(7)}, r"fc.bias has shape \(7,\), expected \(3,\)"),
        ({}, "there is no state_dict in it"),
        ({"epoch": 3}, "there is no state_dict in it"),
    ],
)
def test_weights_of_something_else(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ForeignWeightsError, match=message):
        import_official(weights)


def test_files_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("text")
    torch.save(Path("/"), tmp_path / "object.pth")  # not weights alone: it would have to be run
    for name, message in {
        "none.pth": "there is no file",
        "text.pth": "damaged or holds more",
        "object.pth": "damaged or",
    }.items():
        with pytest.raises(ForeignWeightsError, match=message):
            import_official(tmp_path / name)
