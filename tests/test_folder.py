"""A network as a folder: round trips through real files, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_tspike.fold import fold
from lightning_tspike.folder import FolderError, read_folder, write_folder
from lightning_tspike.models import NetworkConfig, create_network
from lightning_tspike.ternarize import SpikingNetwork, ternarize

KWARGS = {"backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]}, "num_classes": 5, "timesteps": 3}


@pytest.fixture
def folder(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> Path:
    network = lively("tspike_resnet_small", **KWARGS).float()
    return write_folder(tmp_path / "net", fold(network)[0], preprocessing={"input_size": [3, 8, 8], "mean": [0.5]})


@pytest.mark.parametrize("folded", [False, True])
def test_round_trip(tmp_path: Path, lively: Callable[..., SpikingNetwork], folded: bool) -> None:
    network = lively("tspike_resnet_small", **KWARGS, detach_reset=True, decay=0.5).float()
    network = fold(network)[0] if folded else network
    x = torch.randn(2, 3, 8, 8)
    loaded, config = read_folder(write_folder(tmp_path / "a" / "net", network, preprocessing={"mean": [0.1, 0.2, 0.3]}))
    assert torch.equal(loaded(x), network(x))
    assert loaded.config == network.config
    assert not loaded.training
    assert config["preprocessing"] == {"mean": [0.1, 0.2, 0.3]}
    assert bool(config["amplitudes"]) is not folded
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["net"]
    assert sorted(p.name for p in (tmp_path / "a" / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_amplitudes_that_could_not_fold_survive(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    """Split attention adds up groups of channels, whose amplitudes differ."""
    folded, report = fold(lively("resnest14d", num_classes=3, timesteps=1, amplitude="channel"))
    loaded, config = read_folder(write_folder(tmp_path / "net", folded.float()))
    assert config["amplitudes"] == report.kept
    assert 0 < len(report.kept) < len(report.neurons)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), folded(x))


def test_replaces_what_was_there(folder: Path) -> None:
    (folder / "notes.txt").write_text("old")
    other = create_network(NetworkConfig("tspike_resnet_small", num_classes=2))
    write_folder(folder, other)
    assert read_folder(folder)[0].config.num_classes == 2
    assert [p.name for p in folder.parent.iterdir()] == ["net"]
    assert not (folder / "notes.txt").exists()


def test_a_write_that_fails_leaves_what_was_there(folder: Path) -> None:
    before = (folder / "config.json").read_text()
    network = create_network(NetworkConfig("tspike_resnet_small"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_folder(folder, network, preprocessing={"mean": torch.zeros(3)})
    assert (folder / "config.json").read_text() == before
    assert [p.name for p in folder.parent.iterdir()] == ["net"]


def test_only_a_networks_folder_is_replaced(tmp_path: Path) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small"))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "main.py").write_text("work")
    (tmp_path / "file").write_text("work")
    for name in ("project", "file"):
        with pytest.raises(FileExistsError, match="is not replaced"):
            write_folder(tmp_path / name, network)
    assert (tmp_path / "project" / "main.py").read_text() == (tmp_path / "file").read_text() == "work"
    (tmp_path / "empty").mkdir()
    assert read_folder(write_folder(tmp_path / "empty", network))


def test_network_without_a_name(tmp_path: Path) -> None:
    network = ternarize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 2)
    with pytest.raises(ValueError, match="register the model with timm"):
        write_folder(tmp_path / "net", network)
    assert list(tmp_path.iterdir()) == []


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", r"config\.json is not valid JSON.*line 1.*again"),
        ("", "not valid JSON"),
        ("[1, 2]", "schema_version"),
        ('{"schema_version": 99}', "schema version 99.*upgrade"),
        ('{"schema_version": 1}', "'network' is missing"),
        ('{"schema_version": 1, "network": {}, "amplitudes": [], "preprocessing": null}', "backbone"),
    ],
)
def test_config_that_is_not_understood(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(FolderError, match=message):
        read_folder(folder)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"backbone": "resnet43"}, "unknown backbone 'resnet43'; did you mean"),
        ({"backbone": "hf-hub:evil/model"}, "unknown backbone"),
        ({"backbone": "resnet18", "timesteps": 0}, "timesteps"),
        ({"backbone": "resnet18", "surprise": 1}, r"unknown entries \['surprise'\]"),
        ({"backbone": 5}, "backbone must be the name"),
        ({"backbone": "resnet18", "decay": "x"}, "decay must be a number"),
        ({"backbone": "resnet18", "amplitude": "zz"}, "amplitude must be"),
        ({"backbone": "resnet18", "detach_reset": "no"}, "detach_reset must be"),
        ({"backbone": "resnet18", "backbone_kwargs": {"pretrained": True}}, r"must not hold \['pretrained'\]"),
        ({"backbone": "resnet18", "backbone_kwargs": {"checkpoint_path": "/x"}}, "load weights from elsewhere"),
    ],
)
def test_network_that_cannot_be_built(folder: Path, network: dict[str, object], message: str) -> None:
    edit_config(folder, network=network)
    with pytest.raises(FolderError, match=message):
        read_folder(folder)


def test_amplitude_of_no_neuron(folder: Path) -> None:
    edit_config(folder, amplitudes=["fc"])
    with pytest.raises(FolderError, match="'fc', which is no neuron"):
        read_folder(folder)


def _drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["bn1.bias"]


def _add(weights: dict[str, torch.Tensor]) -> None:
    weights["act1.raw_amplitude"] = torch.ones(())


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.bias"] = torch.zeros(6)


def _negate(weights: dict[str, torch.Tensor]) -> None:
    weights["act1.threshold"] *= -1


def _spoil(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"missing tensors \['bn1\.bias'\]"),
        (_add, r"does not have \['act1\.raw_amplitude'\]"),
        (_reshape, r"fc\.bias has shape \(6,\), expected \(5,\)"),
        (_spoil, r"fc\.bias holds NaN"),
        (_negate, r"act1\.threshold is -0\.5, expected a number above 0"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FolderError, match=message):
        read_folder(folder)


def test_weights_that_are_damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FolderError, match="is damaged"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_file_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FolderError, match=f"{name} is missing"):
        read_folder(folder)


def test_folded_thresholds_per_channel_survive(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    """An identity shortcut behind amplitudes per channel makes thresholds per channel."""
    network = lively("tspike_resnet_small", **KWARGS, amplitude="channel", learn_threshold=True, learn_decay=True)
    folded, _ = fold(network.float())
    assert folded.model.stages[0][0].act2.threshold.shape == (4,)
    loaded, _ = read_folder(write_folder(tmp_path / "net", folded))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), folded(x))
    assert isinstance(loaded.model.stages[0][0].act2.threshold, nn.Parameter)


def test_structural_changes_survive(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("resnetaa50", num_classes=3, timesteps=1)
    folded, report = fold(network, torch.randn(1, 3, 64, 64).double(), integer_pools=True, merge_bn=True)
    assert len(report.sum_pools) > 0
    assert len(report.merged_norms) == 53
    folded = folded.float()
    loaded, config = read_folder(write_folder(tmp_path / "net", folded, report=report))
    assert config["sum_pools"] == list(report.sum_pools)
    assert config["merged_norms"]["bn1"] == "conv1"
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), folded(x))
    assert json.loads((tmp_path / "net" / "fold_report.json").read_text())["deviation"] == report.deviation


def test_schema_version_1_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    x = torch.randn(2, 3, 8, 8)
    expected = read_folder(folder)[0](x)
    del config["sum_pools"], config["merged_norms"]
    new = ("neuron", "learn_decay", "learn_threshold", "reset", "surrogate", "freeze_cancelled")
    config["network"] = {name: value for name, value in config["network"].items() if name not in new}
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": 1}))
    assert torch.equal(read_folder(folder)[0](x), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sum_pools": ["fc"]}, "'fc' is not the name of an average pool"),
        ({"sum_pools": [3]}, "describes no network that can be built"),
        ({"merged_norms": {"bn1": "bn1"}}, "'bn1' is not the name of a convolution or linear layer"),
        ({"merged_norms": {"conv1": "conv1"}}, "'conv1' is not the name of a batch norm"),
        ({"merged_norms": []}, "'merged_norms' is missing or not understood"),
    ],
)
def test_structural_changes_that_make_no_sense(folder: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(FolderError, match=message):
        read_folder(folder)
