"""Losses against their equations, written out step by step."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_tspike import TernarySNNModule
from lightning_tspike._calls import running
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.training.losses import distillation_loss, membrane_regularization, tet_loss
from lightning_tspike.training.objective import Objective

TINY = {"layers": [1], "widths": [4]}


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_tet_is_the_mean_over_time_steps(weight: float) -> None:
    logits, labels = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 4, 2, 2])
    expected = 0.0
    for step in logits:
        for b in range(4):
            cross_entropy = step[b].logsumexp(0) - step[b, labels[b]]
            expected = expected + (1 - weight) * cross_entropy / 12 + weight * (step[b] - 1).square().mean() / 12
    loss = tet_loss(logits, labels, weight=weight)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tet_of_mixed_labels_smooths_them_once(smoothing: float) -> None:
    """As mixup gives them: every time step against (1 - smoothing) p + smoothing / K."""
    logits, mixed = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    mixed = mixed / mixed.sum(1, keepdim=True)
    smoothed = (1 - smoothing) * mixed + smoothing / 5
    expected = sum(-(smoothed * step.log_softmax(-1)).sum() for step in logits) / 12
    expected = 0.9 * expected + 0.1 * (logits - 1).square().mean()
    objective = Objective(loss="tet", tet_weight=0.1, label_smoothing=smoothing)
    torch.testing.assert_close(objective.of(logits, mixed), expected)


@pytest.mark.parametrize("loss", ["ce", "tet"])
def test_teacher_of_every_time_step(loss: str) -> None:
    logits, taught = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    alone = Objective(loss=loss).of(logits, labels)
    options = {"loss": loss, "teacher": "resnet18", "teacher_weight": 0.3, "teacher_temperature": 2.0}
    by_step = sum(distillation_loss(step, taught, temperature=2.0) for step in logits) / 3
    by_mean = distillation_loss(logits.mean(0), taught, temperature=2.0)
    for per_step, distillation in ((True, by_step), (False, by_mean)):
        total = Objective(teacher_per_step=per_step, **options).of(logits, labels, taught=taught)
        torch.testing.assert_close(total, 0.7 * alone + 0.3 * distillation)
    assert not torch.allclose(by_step, by_mean)


def test_tet_takes_no_other_shapes() -> None:
    with pytest.raises(
        ValueError, match=r"logits \[T, B, K\] and labels \[B\] or \[B, K\], got shapes \(4, 5\) and \(4,\)"
    ):
        tet_loss(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="weight must be in"):
        tet_loss(torch.zeros(2, 4, 5), torch.zeros(4, dtype=torch.long), weight=2)


def test_distillation_is_the_divergence_of_softened_classes() -> None:
    ours = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    expected = 0.0
    for b in range(4):
        p, q = ((z[b] / 3).exp() / (z[b] / 3).exp().sum() for z in (theirs.detach(), ours))
        expected = expected + 9 * (p * (p.log() - q.log())).sum() / 4
    loss = distillation_loss(ours, theirs, temperature=3)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, ours))
    assert torch.autograd.grad(distillation_loss(ours, theirs), theirs, allow_unused=True) == (None,)
    assert distillation_loss(ours, ours).item() == pytest.approx(0)
    with pytest.raises(ValueError, match=r"one shape \[B, K\], got \(4, 5\) and \(4, 3\)"):
        distillation_loss(ours, theirs[:, :3])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        distillation_loss(ours, theirs, temperature=0)


@pytest.mark.parametrize("options", [{}, {"reset": "soft", "surrogate": "arctan"}, {"neuron": "ctsn"}])
def test_membrane_regularization_weighs_early_steps_more(options: dict[str, object]) -> None:
    """Value by the membrane potentials of each layer's input; gradient by a step along it."""
    config = NetworkConfig("tspike_resnet_small", 3, 1, 3, detach_reset=True, backbone_kwargs=TINY, **options)
    network, x = create_network(config).double().eval(), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    inputs: dict[str, torch.Tensor] = {}
    for name, neuron in network.neurons().items():
        neuron.register_forward_hook(lambda _m, args, _y, name=name: inputs.update({name: args[0]}))
    with membrane_regularization(network) as terms:
        network(x)
    expected = []
    with running(network.call(x)):  # the first neurons know that they get a still image
        for name, neuron in network.neurons().items():
            steps = neuron.membrane_potential(inputs[name]).chunk(3)
            expected.append(sum(u.square().mean() / t for t, u in enumerate(steps, 1)) / 3)
    torch.testing.assert_close(torch.stack(terms), torch.stack(expected))
    gradient = torch.autograd.grad(terms[0], network.model.conv1.weight)[0]  # surrogates have no part in it
    with torch.no_grad():
        step = 1e-7 * gradient / gradient.norm()
        network.model.conv1.weight.add_(step)
        with membrane_regularization(network) as after:
            network(x)
    assert ((after[0] - terms[0]) / 1e-7).item() == pytest.approx(gradient.norm().item(), rel=1e-4)
    network(x)
    assert len(terms) == len(expected)  # nothing listens behind the with


def test_module_adds_the_regularization(tmp_path: Path) -> None:
    module = TernarySNNModule("tspike_resnet_small", num_classes=10, in_chans=1, tmpr_weight=0.2)
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    with membrane_regularization(module.network) as terms:
        expected = torch.nn.functional.cross_entropy(module.network(x), y) + 0.2 * torch.stack(terms).mean()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4))
    assert trainer.logged_metrics["train/loss"].item() == pytest.approx(expected.item())


def test_module_trains_on_it(tmp_path: Path) -> None:
    """The first step's logged loss is that of the untrained network on the first batch."""

    class First(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: TernarySNNModule, batch: object, index: int) -> None:
            x, y = batch
            self.expected = tet_loss(module.network(x, per_step=True), y, weight=0.1).item()

        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            self.logged = trainer.logged_metrics["train/loss"].item()

    module = TernarySNNModule(
        "tspike_resnet_small", num_classes=10, in_chans=1, timesteps=3, loss="tet", tet_weight=0.1
    )
    first = First()
    trainer = L.Trainer(
        max_epochs=1, max_steps=1, limit_val_batches=1, accelerator="cpu", logger=False, callbacks=[first],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DigitsDataModule(batch_size=16))
    assert first.logged == pytest.approx(first.expected)


@pytest.mark.parametrize("options", [{"loss": "hinge"}, {"loss": "tet", "tet_weight": -1}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="loss must be|tet_weight must be"):
        TernarySNNModule("tspike_resnet_small", **options)
