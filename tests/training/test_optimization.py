"""What the optimizer does with which parameters, and that states saved before still load."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.optim import Lookahead, create_optimizer_v2, param_groups_weight_decay
from torch import nn

import lightning_tspike as lt
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.training.optimization import OptimizerOptions, create_optimizer

TINY = {
    "backbone": "tspike_resnet_small",
    "num_classes": 10,
    "in_chans": 1,
    "timesteps": 2,
    "backbone_kwargs": {"layers": [1], "widths": [4]},
}


class _Own(nn.Module):
    """A norm over whole maps and positions, whose parameters have several dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.LayerNorm((4, 8, 8))
        self.act = nn.ReLU()
        self.positions = nn.Parameter(torch.zeros(1, 4, 8, 8))
        self.fc = nn.Linear(4, 10)

    def no_weight_decay(self) -> set[str]:
        return {"positions"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((self.act(self.norm(self.conv(x))) + self.positions).mean((2, 3)))


def own() -> SpikingNetwork:
    return lt.ternarize(_Own(), timesteps=2, input_size=(1, 8, 8))


def network(backbone: str, **options: object) -> SpikingNetwork:
    if backbone == "own":
        return own()
    return lt.TernarySNNModule(**TINY | {"backbone": backbone, "backbone_kwargs": {}}, **options).network


def decayed(network: SpikingNetwork, **options: object) -> set[str]:
    names = {parameter: name.removeprefix("model.") for name, parameter in network.named_parameters()}
    groups = create_optimizer(network, OptimizerOptions(weight_decay=5e-4, **options)).param_groups
    found = [names[p] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())  # each of them once
    return {names[p] for group in groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("scale", [1.0, 64.0])
@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("own", {}),
        ("tspike_resnet_small", {"neuron": "ctsn", "learn_threshold": True, "learn_decay": True}),
        ("tspike_sew_resnet_small", {"amplitude": "channel"}),
        ("tspike_ms_resnet_small", {"freeze_cancelled": False, "learn_threshold": True}),
        ("resnet10t", {"amplitude": "channel", "learn_decay": True}),
    ],
)
def test_weight_decay_is_for_weights_alone(backbone: str, options: dict[str, object], scale: float) -> None:
    """Those of convolutions and linear layers: no bias, no norm, nothing that a neuron learns."""
    net = network(backbone, **options)
    kinds = (nn.Conv2d, nn.Linear)
    weights = {f"{name}.weight" for name, module in net.model.named_modules() if isinstance(module, kinds)}
    assert decayed(net, norm_bias_lr_scale=scale) == weights


def test_weight_decay_asks_timm_models() -> None:
    net = lt.ternarize(timm.create_model("efficientvit_m0", num_classes=10), timesteps=1)
    biases = {name for name, _ in net.model.named_parameters() if name.endswith("attention_biases")}
    assert biases
    assert not biases & decayed(net)


def test_biases_of_norms_learn_faster_through_the_whole_schedule(tmp_path: Path) -> None:
    module = lt.TernarySNNModule(**TINY, lr=0.01, norm_bias_lr_scale=64, weight_decay=5e-4, warmup_epochs=1)
    names = {parameter: name for name, parameter in module.network.named_parameters()}
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            groups = trainer.optimizers[0].param_groups
            fast = [group for group in groups if group["lr"] == max(g["lr"] for g in groups)]
            seen.append((fast[-1]["lr"] / groups[0]["lr"], {names[p] for p in fast[-1]["params"]}))
            assert all(group["nesterov"] for group in groups)

    run = trainer(tmp_path, 4, Watch())
    run.fit(module, DigitsDataModule(batch_size=64))
    norms = {f"model.{name}.bias" for name, m in module.network.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert [fast for _, fast in seen[1:]] == [norms] * 3
    assert [ratio for ratio, _ in seen[1:]] == pytest.approx([64] * 3)  # the first epoch's rate is that of the warm-up


def test_scale_needs_a_bias() -> None:
    net = lt.ternarize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), timesteps=1, input_size=(4,))
    with pytest.raises(ValueError, match="norm_bias_lr_scale=64.* has none.*leave it at 1"):
        create_optimizer(net, OptimizerOptions(norm_bias_lr_scale=64))
    with pytest.raises(ValueError, match="norm_bias_lr_scale must be positive, got 0"):
        OptimizerOptions(norm_bias_lr_scale=0)


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lookahead_sgd"])
@pytest.mark.parametrize("make", [own, lambda: network("tspike_resnet_small")])
def test_states_of_before_still_load(opt: str, make: object) -> None:
    """Groups were once by number of dimensions alone: the momenta find the parameters that they are of."""
    net = make()
    options = {"lr": 0.01, "weight_decay": 5e-4}
    before = create_optimizer_v2(param_groups_weight_decay(net, 5e-4), opt, **options)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    before.step()
    state = before.state_dict()
    after = create_optimizer(net, OptimizerOptions(opt=opt, **options))
    after.load_state_dict(state)
    base = getattr(after, "_base_optimizer", after).state
    expected = getattr(before, "_base_optimizer", before).state
    assert len(base) == len(list(net.parameters()))
    for parameter in net.parameters():
        torch.testing.assert_close(dict(base[parameter]), dict(expected[parameter]), rtol=0, atol=0)


def test_lookahead_resumes_bit_for_bit_and_saves_its_slow_weights(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, resume: Path | None) -> dict[str, object]:
        L.seed_everything(7, verbose=False)
        keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, monitor=None)
        module = lt.TernarySNNModule(**TINY, opt="lookahead_sgd", norm_bias_lr_scale=8, lr=0.01, sched="constant")
        fit = trainer(folder, epochs, keep, limit_train_batches=8, enable_checkpointing=True)
        fit.fit(module, DigitsDataModule(batch_size=32), ckpt_path=resume)
        assert isinstance(fit.optimizers[0], Lookahead)
        checkpoint = torch.load(folder / f"epoch={epochs - 1}.ckpt", weights_only=True)
        return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"][0]}

    whole = run(tmp_path / "whole", 4, None)
    run(tmp_path / "first", 2, None)
    resumed = run(tmp_path / "second", 4, tmp_path / "first" / "epoch=1.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    slow = [state["lookahead_slow_buff"] for state in whole["optimizer"]["state"].values()]
    saved = [w for w in whole["weights"].values() if any(w.shape == s.shape and torch.equal(w, s) for s in slow)]
    assert len(saved) == len(slow)


def trainer(folder: Path, epochs: int, *callbacks: L.Callback, **options: object) -> L.Trainer:
    defaults = {
        "limit_train_batches": 1, "limit_val_batches": 0, "accelerator": "cpu", "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return L.Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=list(callbacks), **defaults | options)
