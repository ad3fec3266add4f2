"""The zoo: what it lists, what it loads, and that the shipped weights do what their entry says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_tspike import zoo
from lightning_tspike.checkpoint import CheckpointError
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.evaluation import evaluate
from lightning_tspike.folder import FolderError
from lightning_tspike.models import NetworkConfig, create_network
from lightning_tspike.spikes import firing_rates


def test_list_and_info() -> None:
    assert zoo.list() == ["tspike-digits", "tspike-resnet34-imagenet"]
    assert zoo.list("*resnet*") == ["tspike-resnet34-imagenet"]
    assert zoo.list("nothing*") == []
    entry = zoo.info("tspike-digits")
    assert (entry.architecture, entry.timesteps, entry.status) == ("tspike_resnet_small", 4, "trained")
    assert entry.measured_by


def test_digits_do_what_the_entry_says() -> None:
    entry = zoo.info("tspike-digits")
    network = zoo.load("tspike-digits")
    assert not network.training
    assert network.config.backbone == entry.architecture
    assert network.timesteps == entry.timesteps
    assert not any("amplitude" in name for name in network.state_dict())
    data = DigitsDataModule()
    data.setup("test")
    result = evaluate(network, data.test_dataloader())
    assert result.accuracy == pytest.approx(entry.metrics["test/acc1"], abs=1e-9)
    assert result.accuracy >= 0.97


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


def test_listing_does_not_wait_for_torch() -> None:
    code = """
import sys
from lightning_tspike import cli, zoo
cli.main(["zoo", "list"])
assert zoo.list()
assert not {"torch", "lightning", "timm"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "tspike-digits" in result.stdout
