"""The zoo: what it lists, what it loads, and that the shipped weights do what their entry says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import FashionMNIST

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.analysis.evaluation import evaluate
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.store.checkpoint import CheckpointError
from lightning_tspike.store.folder import FolderError, write_folder

TRAINED = [
    "tspike-cifar10", "tspike-cifar10-fast", "tspike-cifar10-fast-sparse", "tspike-digits", "tspike-fashion-mnist",
    "tspike-fashion-mnist-fast", "tspike-nmnist",
]  # fmt: skip


def test_list_and_info() -> None:
    assert zoo.list() == [*TRAINED, "tspike-resnet34-imagenet"]
    assert zoo.list("*resnet*") == zoo.list(status="planned") == ["tspike-resnet34-imagenet"]
    assert zoo.list(status="trained") == TRAINED
    assert zoo.list("nothing*") == []
    with pytest.raises(ValueError, match="status must be 'trained', 'planned' or None, got 'done'"):
        zoo.list(status="done")  # type: ignore[arg-type]
    entry = zoo.info("tspike-digits")
    assert (entry.architecture, entry.timesteps, entry.status) == ("tspike_resnet_small", 4, "trained")
    assert entry.measured_by
    assert zoo.info("tspike_resnet_small.digits") is entry


@pytest.mark.parametrize("name", TRAINED)
def test_entries_are_what_the_table_says(name: str) -> None:
    """Pinned by one hash, below 2 MB, or larger and read in 8 bits, whole; its card has the table's figures."""
    entry = zoo.info(name)
    network, config = zoo.load_with_config(name)
    assert not network.training
    assert config.sha256 == entry.sha256
    assert config.weights[entry.precision or "float32"].size == entry.size
    read = network.state_dict()
    as_named = zoo.load(name, precision=entry.precision).state_dict()
    assert all(torch.equal(read[key], tensor) for key, tensor in as_named.items())
    assert (config.network.backbone, config.network.timesteps) == (entry.architecture, entry.timesteps)
    assert not any("amplitude" in key for key in network.state_dict())
    folder, _ = zoo.open_source(name).fetch("all")
    is_small = entry.precision is None
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < (2_000_000 if is_small else 11_000_000)
    assert (folder / "training_log.csv").read_text().startswith("epoch,step,train/acc1")
    assert zoo.verify(name) == [
        f"float32 weights are whole and build {entry.architecture}",
        *(["bfloat16 weights are those rounded"] if is_small else []),
        "int8 weights are those rounded",
        *(["the unfolded network folds to them"] if is_small else []),
    ]
    card = (folder / "README.md").read_text()
    assert f"Measured by `{entry.measured_by}`" in card
    for precision in ("float32", "bfloat16", "int8") if is_small else ("float32", "int8"):
        accuracy = entry.metrics["test/acc1" + (f"/{precision}" if precision != "float32" else "")]
        assert f"| `{precision}` | {100 * accuracy:.2f} % |" in card
    assert ModelCard(card).data.eval_results[0].metric_value == pytest.approx(entry.metrics["test/acc1"], abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_digits_do_what_the_entry_says(precision: Any) -> None:
    entry = zoo.info("tspike-digits")
    data = DigitsDataModule()
    data.setup("test")
    result = evaluate(zoo.load("tspike-digits", precision=precision), data.test_dataloader())
    key = "test/acc1" + (f"/{precision}" if precision != "float32" else "")
    assert result.accuracy == pytest.approx(entry.metrics[key], abs=1.5 / 360)  # a decision may hang on rounding
    assert result.accuracy >= 0.97


@pytest.mark.parametrize("name", ["tspike-fashion-mnist", "tspike-fashion-mnist-fast"])
def test_fashion_mnist_does_what_the_entry_says(shared: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """On the first 2,000 test images, from their PIL images by the entry's own transform."""
    shutil.copytree(shared("data/fashion_mnist"), tmp_path, dirs_exist_ok=True)
    data = FashionMNIST(tmp_path, train=False, download=True)  # unpacks
    transform, network = zoo.transforms(name), zoo.load(name, precision="int8")
    x = torch.stack([transform(data[i][0]) for i in range(2000)])
    with torch.no_grad():
        right = (network(x).argmax(-1) == data.targets[:2000]).double().mean().item()
    assert right == pytest.approx(zoo.info(name).metrics["test/acc1/int8"], abs=0.02)


@pytest.mark.parametrize("name", ["tspike-cifar10-fast", "tspike-cifar10-fast-sparse"])
def test_cifar10_does_what_the_entry_says(shared: Callable[[str], Path], name: str) -> None:
    """On the first 500 test images."""
    with np.load(shared("data/cifar10") / "cifar10_test.npz") as arrays:
        images, labels = (arrays[name][:500] for name in "xy")
    transform, network = zoo.transforms(name), zoo.load(name, precision="int8")
    x = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        right = (network(x).argmax(-1) == torch.tensor(labels)).double().mean().item()
    assert right == pytest.approx(zoo.info(name).metrics["test/acc1/int8"], abs=0.02)


def test_events_by_the_entrys_own_transform(shared: Callable[[str], Path], tmp_path: Path) -> None:
    tonic = pytest.importorskip("tonic")
    with zipfile.ZipFile(shared("data/nmnist_small.zip")) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/Test/" in name])
    transform, network = zoo.transforms("tspike-nmnist"), zoo.load("tspike-nmnist")
    files = sorted((tmp_path / "NMNIST/Test").rglob("*.bin"))
    dtype = tonic.datasets.NMNIST.dtype
    x = torch.stack([transform(tonic.io.read_mnist_file(str(file), dtype)) for file in files])
    with torch.no_grad():
        decided = network(x).argmax(-1)
    right = sum(int(file.parent.name) == label for file, label in zip(files, decided.tolist(), strict=True))
    assert right / len(files) == pytest.approx(zoo.info("tspike-nmnist").metrics["test/acc1"], abs=0.011)


def test_device_dtype_and_configuration() -> None:
    network = zoo.load("tspike-cifar10", device="cpu", dtype=torch.float64)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    cfg = network.pretrained_cfg
    assert (cfg["architecture"], cfg["num_classes"], cfg["input_size"]) == ("tspike_resnet_small", 10, (3, 32, 32))
    assert cfg["label_names"][:2] == ["airplane", "automobile"]
    assert network.num_classes == 10


def test_transform_takes_any_mode() -> None:
    transform = zoo.transforms("tspike-digits")
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    for mode in ("RGB", "RGBA", "LA"):
        torch.testing.assert_close(transform(grey.convert(mode)), transform(grey), atol=0.02, rtol=0)
    mean, std = (zoo.load("tspike-digits").pretrained_cfg[key][0] for key in ("mean", "std"))
    expected = (torch.tensor(np.asarray(grey) / 255).float() - mean) / std
    torch.testing.assert_close(transform(grey)[0], expected)


def test_fine_tuning() -> None:
    """From the network before folding, with its amplitudes; other classes get a fresh classifier."""
    start = zoo.load("tspike-digits", folded=False)
    assert any("raw_amplitude" in key for key in start.state_dict())
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(start(x), zoo.load("tspike-digits")(x), rtol=1e-4, atol=1e-4)
    module = TernarySNNModule.from_zoo("tspike-digits", lr=0.01)
    assert module.hparams["lr"] == 0.01
    torch.testing.assert_close(module.network.eval()(x), start(x))
    other = TernarySNNModule.from_zoo("tspike-digits", num_classes=3, lr=0.01)
    assert other.network(x).shape == (5, 3)
    assert torch.equal(other.network.model.conv1.weight, start.model.conv1.weight)
    with pytest.raises(ValueError, match="has in_chans=1, which its weights depend on: leave in_chans out"):
        TernarySNNModule.from_zoo("tspike-digits", in_chans=3)


def test_more_or_fewer_time_steps() -> None:
    """What the digits' network scores on all 1,797 images, in per cent; trained at T = 4."""
    digits = load_digits()
    cfg = zoo.load("tspike-digits").pretrained_cfg
    x = (torch.tensor(digits.images / 16).float().unsqueeze(1) - cfg["mean"][0]) / cfg["std"][0]
    scores = []
    for timesteps in (1, 2, 4, 8):
        network = zoo.load("tspike-digits", timesteps=timesteps)
        assert network.timesteps == network.config.timesteps == timesteps
        with torch.no_grad():
            right = network(x).argmax(-1) == torch.tensor(digits.target)
        scores.append(100 * right.double().mean().item())
    assert scores == pytest.approx([99.5, 99.9, 99.7, 99.7], abs=0.15)
    module = TernarySNNModule.from_zoo("tspike-digits", timesteps=8)
    assert module.hparams["timesteps"] == module.network.timesteps == 8
    start = zoo.load("tspike-digits", folded=False, timesteps=8)
    torch.testing.assert_close(module.network.eval()(x[:4], per_step=True), start(x[:4], per_step=True))
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1, got 0"):
        zoo.load("tspike-digits", timesteps=0)


def test_reset_classifier(tmp_path: Path) -> None:
    network = zoo.load("tspike-digits")
    network.reset_classifier(4)
    assert (network.num_classes, network.config.num_classes) == (4, 4)
    assert network.pretrained_cfg["num_classes"] == 4
    assert "label_names" not in network.pretrained_cfg
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(zoo.load(write_folder(tmp_path / "net", network))(x), network(x))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        network.reset_classifier(0)


def test_fine_tuned_checkpoint_loads(tmp_path: Path) -> None:
    """A short training from the zoo; its checkpoint is folded on the fly."""
    module = TernarySNNModule.from_zoo("tspike-digits", lr=1e-3)
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, DigitsDataModule(batch_size=32))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    x = torch.randn(4, 1, 8, 8)
    folded, config = zoo.load_with_config(tmp_path / "a.ckpt")
    assert not any("amplitude" in key for key in folded.state_dict())
    torch.testing.assert_close(folded(x), module.network.eval()(x), rtol=1e-4, atol=1e-4)
    assert config.label_names == tuple("0123456789")
    image = Image.fromarray(np.full((8, 8), 200, np.uint8))
    assert torch.equal(zoo.transforms(tmp_path / "a.ckpt")(image), zoo.transforms("tspike-digits")(image))
    assert torch.equal(zoo.load(tmp_path / "a.ckpt", folded=False)(x), module.network(x))
    with pytest.raises(zoo.ZooError, match="is a checkpoint, whose weights are float32"):
        zoo.load(tmp_path / "a.ckpt", precision="int8")


def test_published_folded_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "net", zoo.load("tspike-digits"))
    with pytest.raises(zoo.ZooError, match="was published folded alone"):
        zoo.load(folder, folded=False)
    with pytest.raises(zoo.ZooError, match=r"does not say what its input is: \['input_size', 'mean', 'std'\]"):
        zoo.transforms(folder)


def test_firing_rates_by_hand() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", in_chans=1, timesteps=3)).eval()
    seen = []
    network.model.act1.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with firing_rates(network) as rates, torch.no_grad():
        network(torch.randn(4, 1, 8, 8))
        network(torch.randn(2, 1, 8, 8))
    spikes = torch.cat(seen)
    assert rates["act1"].positive == pytest.approx((spikes > 0).double().mean().item())
    assert rates["act1"].negative == pytest.approx((spikes < 0).double().mean().item())
    assert rates["act1"].total == pytest.approx((spikes != 0).double().mean().item())
    assert list(rates) == list(network.neurons())


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no batch"):
        evaluate(create_network(NetworkConfig("tspike_resnet_small")), [])


def test_planned_entry_names_its_recipe() -> None:
    with pytest.raises(zoo.ZooError, match="is planned.*tspike fit --config resnet34_imagenet"):
        zoo.load("tspike-resnet34-imagenet")


@pytest.mark.parametrize("name", ["tspike-digit", "digits"])
def test_close_names(name: str) -> None:
    for ask in (zoo.info, zoo.load):
        with pytest.raises(zoo.ZooError, match="did you mean 'tspike-digits'"):
            ask(name)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(zoo.ZooError, match="there is no folder"):
        zoo.load(tmp_path / "nowhere")
    with pytest.raises(FolderError, match=r"config\.json is missing"):
        zoo.load(tmp_path)
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"best\.ckpt is damaged or not a Lightning checkpoint"):
        zoo.load(tmp_path / "best.ckpt")


def test_every_recipe_of_an_entry_exists() -> None:
    for name in zoo.list():
        assert zoo.recipe_path(zoo.info(name).recipe).is_file()
    with pytest.raises(zoo.ZooError, match="did you mean 'digits'"):
        zoo.recipe_path("digit")


def test_names_of_the_face() -> None:
    """All that it offers is found by tab completion and in ``import *``, the builtin ``list`` included."""
    assert sorted(dir(zoo)) == sorted(zoo.__all__)
    assert all(callable(getattr(zoo, name)) for name in zoo.__all__)
    assert zoo.list is zoo.list_entries
    assert isinstance(zoo.list(), list)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        zoo.lod  # noqa: B018


def test_listing_does_not_wait_for_torch() -> None:
    code = """
import sys
from lightning_tspike import zoo
from lightning_tspike.cli.main import main
main(["zoo", "list"])
assert zoo.list()
assert not {"torch", "lightning", "timm"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "tspike-digits" in result.stdout
