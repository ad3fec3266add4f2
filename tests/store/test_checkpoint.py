"""Reading a network out of a checkpoint that Lightning wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.store.checkpoint import CheckpointError, read_checkpoint

OPTIONS = {
    "backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2, "neuron": "ctsn",
    "amplitude": "channel", "decay": 0.4, "learn_decay": True, "learn_threshold": True, "reset": "soft",
    "surrogate": "arctan", "backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]},
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TernarySNNModule]:
    module = TernarySNNModule(**OPTIONS)
    trainer = L.Trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=0, accelerator="cpu", logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DigitsDataModule(batch_size=32))
    path = tmp_path_factory.mktemp("run") / "a.ckpt"
    trainer.save_checkpoint(path)
    return path, module


def test_network_and_preprocessing_come_back(checkpoint: tuple[Path, TernarySNNModule]) -> None:
    path, module = checkpoint
    state = torch.get_rng_state()
    network, preprocessing, label_names, seconds = read_checkpoint(path)
    assert seconds is None  # no Timer has counted
    assert torch.equal(torch.get_rng_state(), state)  # a training run that goes on draws what it would have drawn
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(network.eval()(x), module.network.eval()(x))
    assert network.config == module.network.config
    assert preprocessing.input_size == network.input_size == (1, 8, 8)  # of the images, not of the backbone
    assert module.network.input_size == (1, 32, 32)
    assert label_names == list("0123456789")


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("source", ["checkpoint", "folder"])
def test_loaded_in_inference_mode_it_can_be_used_outside(
    checkpoint: tuple[Path, TernarySNNModule], source: str, folded: bool
) -> None:
    name = checkpoint[0] if source == "checkpoint" else "tspike-digits"
    with torch.inference_mode():
        network = zoo.load(name, folded=folded, dtype=torch.float64)
    network.train()(torch.randn(2, 1, 8, 8, dtype=torch.float64)).sum().backward()
    assert not any(tensor.is_inference() for tensor in network.state_dict().values())


def test_checkpoint_of_an_earlier_version(lively: Callable[..., SpikingNetwork], tmp_path: Path) -> None:
    """Its hyperparameters have no freeze_cancelled, and it has a parameter for every amplitude."""
    network = lively("tspike_resnet_small", num_classes=10).float()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    hyper_parameters = {"backbone": "tspike_resnet_small", "num_classes": 10, "lr": 0.1, "backbone_kwargs": None}
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters}, tmp_path / "old.ckpt")
    loaded, preprocessing, *_ = read_checkpoint(tmp_path / "old.ckpt")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.eval()(x), network(x))
    assert preprocessing is None


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lookahead_sgd"])
def test_optimizer_of_an_earlier_version(opt: str) -> None:
    """What was learned for a layer was a scalar, and so was what optimizers keep of it."""

    def trained(steps: int, state: dict[str, Any] | None) -> tuple[list[torch.Tensor], dict[str, Any]]:
        torch.manual_seed(3)
        module = TernarySNNModule(**{**OPTIONS, "amplitude": "layer"}, sched="none", opt=opt)
        optimizer = module.configure_optimizers()
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            optimizer.zero_grad()
            module.network(torch.randn(4, 1, 8, 8)).square().sum().backward()
            optimizer.step()
        return list(module.parameters()), copy.deepcopy(optimizer.state_dict())

    _, new = trained(2, None)
    old = copy.deepcopy(new)
    for state in old["state"].values():
        state.update({k: v[0] for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == (1,)})
    assert any(v.shape == () for state in old["state"].values() for k, v in state.items() if k != "step")
    expected, got = trained(2, new)[0], trained(2, old)[0]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_what_is_no_checkpoint(checkpoint: tuple[Path, TernarySNNModule], tmp_path: Path) -> None:
    path, _ = checkpoint
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("text")
    torch.save({"state_dict": {"layer.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"state_dict": torch.load(path)["state_dict"]}, tmp_path / "bare.ckpt")
    for name, message in {
        "cut.ckpt": "damaged", "empty.ckpt": "damaged", "text.ckpt": "damaged",
        "list.ckpt": "not a Lightning checkpoint",
        "other.ckpt": r"no weights called 'network\.\*'", "bare.ckpt": "does not say how to build its network",
        "none.ckpt": "there is no checkpoint", ".": "folder of shards",
    }.items():  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


def test_weights_of_another_network(checkpoint: tuple[Path, TernarySNNModule], tmp_path: Path) -> None:
    saved = torch.load(checkpoint[0])
    saved["hyper_parameters"]["num_classes"] = 7
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="does not fit the network that it describes.*num_classes=7"):
        read_checkpoint(tmp_path / "a.ckpt")
