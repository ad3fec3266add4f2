"""A network as a folder: round trips through real files, and everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_tspike.files.input_spec import InputSpec
from lightning_tspike.files.weights import FILES, file_facts
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork, ternarize
from lightning_tspike.store.folder import FolderError, read_folder, read_manifest, write_folder
from lightning_tspike.store.manifest import seal
from lightning_tspike.store.publish import verify

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
    assert config.preprocessing == InputSpec(mean=(0.1, 0.2, 0.3))
    assert loaded.input_size == network.input_size  # no other is known
    assert bool(config.amplitudes) is not folded
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["net"]
    assert sorted(p.name for p in (tmp_path / "a" / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("neuron", ["ternary_if", "quantized"])
def test_several_levels_round_trip(tmp_path: Path, lively: Callable[..., SpikingNetwork], neuron: str) -> None:
    network = lively("tspike_resnet_small", **KWARGS, neuron=neuron, levels=3, reset="soft", threshold=0.2).float()
    x = torch.randn(2, 3, 8, 8)
    for saved in (network, fold(network)[0]):
        loaded, config = read_folder(write_folder(tmp_path / "net", saved))
        assert config.network.levels == 3
        assert torch.equal(loaded(x), saved(x))


def test_amplitudes_that_could_not_fold_survive(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    """Split attention adds up groups of channels, whose amplitudes differ."""
    folded, report = fold(lively("resnest14d", num_classes=3, timesteps=1, amplitude="channel"))
    loaded, config = read_folder(write_folder(tmp_path / "net", folded.float()))
    assert list(config.amplitudes) == report.kept
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
    with pytest.raises(ValueError, match=r"nothing is written to .*net, as nothing could read it: has tensor\("):
        write_folder(folder, network, preprocessing={"mean": torch.zeros(3)})
    with pytest.raises(TypeError, match="bytes-like"):  # of another kind, when half of it is written
        write_folder(folder, network, files={"notes.txt": "text"})
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
    """Change the configuration as somebody would who knows how to seal it."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(seal(config | changes)))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], precision: str = "float32") -> None:
    """Change the weights likewise."""
    file = folder / FILES[precision]
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, weights={**config["weights"], precision: file_facts(file)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", r"config\.json is not valid JSON.*line 1.*again"),
        ("", "not valid JSON"),
        ("[1, 2]", "schema_version"),
        ('{"schema_version": 99}', "schema version 99.*upgrade"),
        ('{"schema_version": 1}', "'network' is missing"),
        ('{"schema_version": 1, "schema_version": 2}', "has a key twice"),
        ('{"schema_version": NaN}', "NaN is no JSON"),
        ('{"schema_version": 3}', "was changed after it was written"),
        ('{"schema_version": 2, "sha256": ""}', r"unknown entries \['sha256'\] for schema version 2"),
        ("[" * 200_000, "not valid JSON"),
        ('{"schema_version": ' + "9" * 5000 + "}", "not valid JSON"),
        (" " * 5_000_000, "5000000 bytes, no configuration has more"),
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
        ({"backbone": "tspike_resnet_small", "timesteps": 10**9}, "has 1000000000 timesteps"),
        ({"backbone": "tspike_resnet_small", "num_classes": 10**9}, "far more than its weights have"),
        (
            {"backbone": "tspike_resnet_small", "backbone_kwargs": {"layers": [10**9, 1, 1]}},
            "no backbone has a number beyond",
        ),
        ({"backbone": "resnet18", "backbone_kwargs": {"act_layer": "os.system"}}, "no network that can be built"),
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
    with pytest.raises(FolderError, match="'fc', which is not a neuron"):
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
    edit_weights(folder, change)
    with pytest.raises(FolderError, match=message):
        read_folder(folder)


def test_weights_that_are_damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(FolderError, match=f"has 100 bytes, not {len(whole)}: it is cut off or was changed"):
        read_folder(folder)
    edit_config(folder, weights={"float32": file_facts(file)})
    with pytest.raises(FolderError, match="is damaged"):
        read_folder(folder)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    edit_config(folder, weights={"float32": {**file_facts(file), "sha256": hashlib.sha256(whole).hexdigest()}})
    with pytest.raises(FolderError, match="was changed after it was written"):
        read_folder(folder)


def test_a_changed_configuration_is_told(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    expected = config["sha256"]
    assert read_manifest(folder, sha256=expected).to_dict() == config
    changed = {**config, "network": {**config["network"], "decay": 0.125}}
    file.write_text(json.dumps(changed))
    with pytest.raises(FolderError, match="was changed after it was written: 'sha256' does not fit"):
        read_folder(folder)
    file.write_text(json.dumps(seal(changed)))  # well-formed, but another one
    with pytest.raises(FolderError, match=f"is not the one that is expected: its sha256 is .*, not {expected}"):
        read_folder(folder, sha256=expected)


def test_precisions(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    """Rounded weights by hand: int8 to 1/127 of a channel's largest, bfloat16 to 8 bits; the rest is untouched."""
    network = lively("tspike_resnet_small", **KWARGS).float()
    with torch.no_grad():
        network.model.conv1.weight[1] = 0  # a channel without weights
    folded, _ = fold(network)
    folder = write_folder(tmp_path / "net", folded, precisions=("float32", "bfloat16", "int8"), unfolded=network)
    exact = folded.model.state_dict()
    for precision in ("float32", "bfloat16", "int8"):
        loaded = read_folder(folder, precision=precision)[0].model.state_dict()
        assert loaded.keys() == exact.keys()
        for name, tensor in exact.items():
            if precision == "float32" or tensor.ndim < 2:
                assert torch.equal(loaded[name], tensor)
            elif precision == "bfloat16":
                assert torch.equal(loaded[name], tensor.bfloat16().float())
            else:
                step = tensor.abs().flatten(1).amax(1).clamp(min=1e-30).view(-1, *[1] * (tensor.ndim - 1)) / 127
                assert ((loaded[name] - tensor).abs() <= step * 0.5001).all()
                assert (loaded[name] / step).round().abs().max() == 127
    assert torch.equal(read_folder(folder)[0].model.conv1.weight, folded.model.conv1.weight)  # float32 goes first
    sizes = {precision: (folder / name).stat().st_size for precision, name in FILES.items()}
    assert sizes["int8"] < sizes["bfloat16"] < sizes["float32"]
    unfolded, config = read_folder(folder / "unfolded")
    assert json.loads((folder / "config.json").read_text())["unfolded"] == config.sha256
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(unfolded(x), network(x))
    with pytest.raises(FolderError, match="has no weights of precision 'float16', only float32, bfloat16, int8"):
        read_folder(folder, precision="float16")


def test_copy_with_some_of_the_weights(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    """Those that are there are read where they are asked for; nothing else is read in place of what is missing."""
    network = lively("tspike_resnet_small", **KWARGS).float()
    folder = write_folder(tmp_path / "net", network, precisions=("float32", "bfloat16", "int8"))
    for name in ("float32", "bfloat16"):
        (folder / FILES[name]).unlink()
    assert read_folder(folder, precision="int8")
    for precision, name in ((None, "model"), ("float32", "model"), ("bfloat16", "model.bfloat16")):
        with pytest.raises(FolderError, match=rf"/{re.escape(name)}\.safetensors is missing"):
            read_folder(folder, precision=precision)
    assert verify(folder) == [
        "int8 weights are whole and build tspike_resnet_small",
        "float32 weights are not here",
        "bfloat16 weights are not here",
    ]


def _half(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.weight"] = weights["fc.weight"].double()


def _unscaled(weights: dict[str, torch.Tensor]) -> None:
    del weights["fc.weight:scale"]


def _scaled_twice(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.weight:scale"] = torch.ones(2, 5)


def _scale_of_nothing(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.bias:scale"] = torch.ones(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_half, r"fc\.weight has type torch\.float64, which no file of lightning-tspike has"),
        (_unscaled, r"fc\.weight is int8 and has no float32 fc\.weight:scale \[5\]"),
        (_scaled_twice, r"fc\.weight is int8 and has no float32 fc\.weight:scale \[5\]"),
        (_scale_of_nothing, r"fc\.bias:scale scales no tensor of int8"),
    ],
)
def test_rounded_weights_that_make_no_sense(
    tmp_path: Path,
    lively: Callable[..., SpikingNetwork],
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folder = write_folder(tmp_path / "net", lively("tspike_resnet_small", **KWARGS).float(), precisions=("int8",))
    edit_weights(folder, change, "int8")
    with pytest.raises(FolderError, match=message):
        read_folder(folder)


def test_label_names(folder: Path, tmp_path: Path) -> None:
    network, config = read_folder(folder)
    assert config.label_names is None
    named = write_folder(tmp_path / "named", network, label_names=list("abcde"))
    assert read_manifest(named).label_names == tuple("abcde")
    for facts in ({"label_names": ["a"]}, {"preprocessing": {"crop_pct": 2}}):  # could not be read again
        with pytest.raises(ValueError, match="nothing is written to .*other, as nothing could read it"):
            write_folder(tmp_path / "other", network, **facts)
    assert not (tmp_path / "other").exists()
    for names in (["a"], [1, 2, 3, 4, 5]):
        edit_config(named, label_names=names)
        with pytest.raises(FolderError, match="'label_names' must be 5 texts"):
            read_folder(named)


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
    assert config.sum_pools == tuple(report.sum_pools)
    assert config.merged_norms["bn1"] == "conv1"
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), folded(x))
    assert json.loads((tmp_path / "net" / "fold_report.json").read_text())["deviation"] == report.deviation


def test_standardized_weights_survive(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    kwargs = {"norm_free_gain": 1.27, "widths": [8, 8, 8]}
    network = lively("tspike_fast_resnet", num_classes=5, timesteps=2, backbone_kwargs=kwargs).float()
    folded, report = fold(network)
    assert len(report.standardized) == 6
    loaded, config = read_folder(write_folder(tmp_path / "net", folded))
    assert config.standardized == report.standardized
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), folded(x))


def test_thresholds_that_were_coupled_survive(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small", **KWARGS, couple_threshold=True).float()
    x = torch.randn(2, 3, 8, 8)
    for net in (network, fold(network)[0]):
        loaded, _ = read_folder(write_folder(tmp_path / f"net{id(net)}", net))
        assert torch.equal(loaded(x), net(x))


def test_schema_version_1_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    x = torch.randn(2, 3, 8, 8)
    expected = read_folder(folder)[0](x)
    for entry in (
        "standardized",
        "results",
        "sum_pools",
        "merged_norms",
        "label_names",
        "weights",
        "unfolded",
        "sha256",
    ):
        del config[entry]
    new = ("neuron", "learn_decay", "learn_threshold", "reset", "surrogate", "freeze_cancelled")
    config["network"] = {name: value for name, value in config["network"].items() if name not in new}
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": 1}))
    assert torch.equal(read_folder(folder)[0](x), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"standardized": ["conv1"]}, "'conv1' is not the name of a convolution that standardises its weights"),
        ({"sum_pools": ["fc"]}, "'fc' is not the name of an average pool"),
        ({"sum_pools": [3]}, "describes no network that can be built"),
        ({"merged_norms": {"bn1": "bn1"}}, "'bn1' is not the name of a convolution or linear layer"),
        ({"merged_norms": {"conv1": "conv1"}}, "'conv1' is not the name of a batch norm"),
        ({"merged_norms": []}, "'merged_norms' is missing or not understood"),
    ],
)
def test_structural_changes_that_make_no_sense(folder: Path, change: dict[str, object], message: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(FolderError, match=message):
        read_folder(folder)
