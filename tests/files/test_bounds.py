"""What files ask for is bounded before anything is built or computed from it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_tspike import zoo
from lightning_tspike.files.bounds import plain
from lightning_tspike.files.torch_files import read_torch_file
from lightning_tspike.models import ForeignWeightsError, create_network, import_official
from lightning_tspike.network import NetworkConfig
from lightning_tspike.store.checkpoint import CheckpointError, read_checkpoint
from lightning_tspike.store.folder import FolderError, write_folder
from lightning_tspike.store.manifest import seal

CONFIG = NetworkConfig("tspike_resnet_small", 10, 1, 2, backbone_kwargs={"layers": [1, 1], "widths": [4, 8]})
INPUT = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5]}
BOMB: Any = ["x"]
for _ in range(40):
    BOMB = [BOMB] * 10


def checkpoint(folder: Path, change: Callable[[dict[str, Any]], object] = lambda saved: None) -> Path:
    state = {f"network.{name}": tensor for name, tensor in create_network(CONFIG).state_dict().items()}
    saved = {"state_dict": state, "hyper_parameters": asdict(CONFIG), "preprocessing": INPUT}
    change(saved)
    torch.save(saved, folder / "a.ckpt")
    return folder / "a.ckpt"


def says(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda saved: saved["hyper_parameters"].update(values)


def holds(name: str, tensor: Any) -> Callable[[dict[str, Any]], object]:
    return lambda saved: saved["state_dict"].update({f"network.model.{name}": tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (says(num_classes=25_000_000), "far more than its weights have"),
        (says(timesteps=65536), "65536 timesteps, no network has more than 4096"),
        (says(timesteps=4000, in_chans=10_000), "asks for inputs of 4000 x 10000 values"),
        (says(backbone_kwargs={"layers": [10**9]}), "no backbone has a number beyond"),
        (says(backbone_kwargs={"layers": BOMB}), "entries or 16 levels"),
        (holds("conv1.weight", torch.zeros(1).expand(10**6, 10**6)), "has tensors of 10000000"),
        (holds("conv1.weight", torch.full((4, 1, 3, 3), float("nan"))), "conv1.weight holds NaN"),
        (holds("bn1.running_var", -torch.ones(4)), "bn1.running_var holds negative variances"),
        (holds("conv1.weight", torch.ones(3).to_sparse()), "it would call 'torch._utils _rebuild_sparse_tensor'"),
        (holds("conv1.weight", "text"), "does not name an ordinary tensor"),
        (lambda saved: saved.update(preprocessing={"input_size": [1, 65536, 65536]}), "inputs of 1 x 1 x 65536"),
        (lambda saved: saved.update(preprocessing=BOMB), "entries or 16 levels"),
        (lambda saved: saved.update(label_names=["a"]), "'label_names' must be 10 texts"),
        (lambda saved: saved.update(hyper_parameters=5), "does not say how to build its network"),
    ],
)
def test_checkpoints(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = checkpoint(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_sound_checkpoint_passes(tmp_path: Path) -> None:
    assert read_checkpoint(checkpoint(tmp_path)).network.config == CONFIG


def test_long_runs_are_folded_only_if_asked_for(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, says(timesteps=1000))
    with pytest.raises(zoo.ZooError, match="1000 timesteps.*folded=False"):
        zoo.load(path)
    assert zoo.load(path, folded=False).timesteps == 1000


def test_a_changed_byte_is_told(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    weights = torch.load(path, weights_only=True)["state_dict"]["network.model.conv1.weight"]
    content = path.read_bytes()
    at = content.index(weights.numpy().tobytes())
    path.write_bytes(content[: at + 3] + bytes([content[at + 3] ^ 1]) + content[at + 4 :])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/version", "3\n")
        file.writestr("archive/data.pkl", b"\x80\x02" + pickled)
    return path


def test_files_that_grow(tmp_path: Path) -> None:
    call = archive(tmp_path / "call", b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.")
    with pytest.raises(ValueError, match="it would call 'builtins bytearray'"):
        read_torch_file(call)
    with pytest.raises(ValueError, match="is compressed"):
        read_torch_file(archive(tmp_path / "zip", b"]" * 10**7 + b".", zipfile.ZIP_DEFLATED))
    text = b"X" + (3_000_000).to_bytes(4, "little") + b"x" * 3_000_000
    with pytest.raises(ValueError, match="describes itself in more than 2097152 bytes"):
        read_torch_file(archive(tmp_path / "long", text + b"."))


def test_files_of_both_formats_are_read(tmp_path: Path) -> None:
    saved = {"state_dict": {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}, "epoch": 3, "s": {1, 2}}
    for new in (True, False):
        torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        read = read_torch_file(tmp_path / "a.pth")
        assert read["epoch"] == 3
        assert torch.equal(read["state_dict"]["a"], torch.arange(3.0))


def test_imports(tmp_path: Path) -> None:
    itself: dict[str, Any] = {}
    itself["state_dict"] = {"model": itself}
    torch.save(itself, tmp_path / "a.pth")
    with pytest.raises(ForeignWeightsError, match="there is no state_dict in it"):
        import_official(tmp_path / "a.pth")
    ends = {"conv1.weight": torch.zeros(1, 1, 3, 3), "fc.weight": torch.zeros(1, 1)}
    many = {f"layer1.{i}.conv2.weight": torch.zeros(1, 1, 1, 1) for i in range(20_000)}
    with pytest.raises(ForeignWeightsError, match="20002 tensors, no network has more than 10000"):
        import_official({**ends, **many})
    with pytest.raises(ForeignWeightsError, match=r"not finite: conv1\.weight holds NaN"):
        import_official({**ends, "conv1.weight": torch.full((1, 1, 3, 3), float("nan"))})
    for name in ("", "module", "module.model", "layer" + "9" * 5000 + ".0.conv2.weight", "a..b"):
        with pytest.raises(ForeignWeightsError, match="names that no module has"):
            import_official({**ends, name: torch.ones(1)})
    deep = {f"layer1.{i}.conv2.weight": torch.zeros(1, 1, 1, 1) for i in range(2_000)}
    with pytest.raises(ForeignWeightsError, match="far more than its weights have"):
        import_official({**ends, **deep})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": [1, 65536, 65536]}, "inputs of 1 x 1 x 65536 x 65536 values"),
        ({"crop_pct": 1e-4}, "more than the 33554432"),
        ({"crop_pct": 1e-320}, "more than the 33554432"),
        ({"crop_pct": 0}, r"'crop_pct' must be a number in \(0, 1\]"),
        ({"crop_pct": "x"}, "'crop_pct'"),
        ({"interpolation": "os"}, "'interpolation' must be one of"),
        ({"interpolation": []}, "'interpolation' must be one of"),
        ({"mean": [0.1, 0.2]}, "'mean' must have a number for each of 1 channels"),
        ({"mean": []}, "'mean' must have a number"),
        ({"std": [0.0]}, "'std' must be positive"),
        ({"frames": {"timesteps": 4}}, "'frames' must have"),
        ({"frames": {"timesteps": 10**9, "slice_by": "time", "sensor_size": [8, 8, 1]}}, "1000000000 timesteps"),
        ({"frames": {"timesteps": 4, "slice_by": [], "sensor_size": [8, 8, 1]}}, "'slice_by' must be"),
        ({"frames": {"timesteps": 4, "slice_by": "time", "sensor_size": [8, 8]}}, "sensor_size"),
    ],
)
def test_preprocessing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_folder(tmp_path / "net", create_network(CONFIG), preprocessing=INPUT)
    assert zoo.transforms(tmp_path / "net")(Image.new("L", (9, 9))).shape == (1, 8, 8)
    file = tmp_path / "net" / "config.json"
    config = json.loads(file.read_text())
    config["preprocessing"].update(changes)
    file.write_text(json.dumps(seal(config)))
    with pytest.raises(FolderError, match=message):
        zoo.transforms(tmp_path / "net")
    with pytest.raises(CheckpointError, match=message):
        zoo.transforms(checkpoint(tmp_path, lambda saved: saved.update(preprocessing={**INPUT, **changes})))


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    network = create_network(CONFIG)
    network.model.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"conv1\.weight holds NaN"):
        write_folder(tmp_path / "net", network)
    assert list(tmp_path.iterdir()) == []


def test_plain() -> None:
    value = {"a": [1, 2.5, None, True, "x"], "b": {}}
    assert plain(value) == value
    assert plain((1, (2,))) == [1, [2]]
    itself: list[Any] = []
    itself.append(itself)
    for odd in (itself, BOMB, {1: 2}, object(), 10**40, b"x", "x" * 10**5, torch.ones(1)):
        with pytest.raises(ValueError, match=r"^has "):
            plain(odd)
