"""Training by Lightning: what is learned, what is stored, what is refused, and that a resumed run is the same run."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_tspike import TernarySNNModule
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.training.option_checks import slow_precision

SMALL = {"backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2}
TINY = SMALL | {"backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]}}


def trainer(folder: Path, **options: object) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, **defaults | options)


def test_learns_digits(tmp_path: Path) -> None:
    L.seed_everything(1, verbose=False)
    module, data = TernarySNNModule(**SMALL), DigitsDataModule()
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, data)
    metrics = run.test(module, data, verbose=False)[0]
    assert set(metrics) == {"test/loss", "test/acc1", "test/acc5"}
    assert metrics["test/acc1"] > 0.9
    neurons = module.network.neurons().values()
    amplitudes = [neuron.amplitude.item() for neuron in neurons if neuron.raw_amplitude is not None]
    assert all(a > 0 for a in amplitudes)
    assert max(abs(a - 1) for a in amplitudes) > 0.01


def test_loads_from_checkpoint_without_arguments(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY, amplitude="fixed", threshold=0.4)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    run.fit(module, DigitsDataModule())
    file = tmp_path / "one.ckpt"
    run.save_checkpoint(file)
    torch.load(file, weights_only=True)  # nothing but primitives and tensors inside
    loaded = TernarySNNModule.load_from_checkpoint(file).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), module.eval()(x))
    assert loaded.network.config == module.network.config


def test_metrics_logged_equal_metrics_by_hand(tmp_path: Path) -> None:
    module, data = TernarySNNModule(**TINY), DigitsDataModule(batch_size=50)
    logged = trainer(tmp_path).test(module, data, verbose=False)[0]
    batches = list(data.test_dataloader())
    module.eval()
    logits, labels = torch.cat([module(x) for x, _ in batches]), torch.cat([y for _, y in batches])
    top5 = (logits.topk(5).indices == labels[:, None]).any(1)
    assert len(labels) == 360
    assert logged["test/acc1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert logged["test/acc5"] == pytest.approx(top5.double().mean().item())
    assert logged["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_weight_decay_spares_amplitudes_biases_and_norms(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY, weight_decay=0.1, sched="none")
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=0)
    run.fit(module, DigitsDataModule())
    names = {id(p): name for name, p in module.named_parameters()}
    groups = run.optimizers[0].param_groups
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | spared == set(names.values())
    assert decayed == {name for name, p in module.named_parameters() if p.ndim > 1}
    assert {"network.model.act1.raw_amplitude", "network.model.fc.bias", "network.model.bn1.weight"} <= spared


def test_schedule_warms_up_and_decays_by_epoch(tmp_path: Path) -> None:
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = TernarySNNModule(**TINY, lr=0.1, warmup_epochs=2)
    run = trainer(tmp_path, max_epochs=6, limit_train_batches=1, limit_val_batches=0, callbacks=[Watch()])
    run.fit(module, DigitsDataModule())
    assert seen[0] == pytest.approx(1e-5)
    assert seen[0] < seen[1] < seen[2]
    assert seen[2] > seen[3] > seen[4] > seen[5] > 0


@pytest.mark.parametrize(
    ("when", "num_workers"),
    [("after validation", 0), ("after validation", 2), ("at the end of the training epoch", 0)],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, num_workers: int, when: str) -> None:
    """Bit for bit: weights, BN statistics, momentum and schedule, with shuffling and random augmentation."""

    def run(folder: Path, epochs_seen: int, resume: Path | None) -> dict[str, object]:
        L.seed_everything(7, verbose=False)
        torch.rand(11 if resume else 3)  # other random numbers were drawn before
        keep = ModelCheckpoint(
            folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=when != "after validation"
        )
        stop = [_StopAfter(epochs_seen)]
        run = trainer(folder, max_epochs=4, limit_train_batches=6, limit_val_batches=2, callbacks=[keep, *stop])
        module = TernarySNNModule(**TINY, lr=0.05, warmup_epochs=1)
        run.fit(module, DigitsDataModule(batch_size=32, num_workers=num_workers), ckpt_path=resume)
        checkpoint = torch.load(folder / f"epoch={epochs_seen - 1}.ckpt", weights_only=True)
        return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"][0]}

    whole = run(tmp_path / "whole", 4, None)
    run(tmp_path / "first", 2, None)
    resumed = run(tmp_path / "second", 4, tmp_path / "first" / "epoch=1.ckpt")

    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


class _Augmented(Dataset):
    """Images that differ each time they are read: by Python's, numpy's and torch's random numbers."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.full((1, 8, 8), index / 48)
        return image + torch.rand(1) + random.random() + np.random.rand(), index % 10


@pytest.mark.parametrize(
    ("when", "num_workers"),
    [("after validation", 0), ("at the end of the training epoch", 0), ("at the end of the training epoch", 2)],
)
def test_resumed_equals_uninterrupted_with_a_loader_of_your_own(tmp_path: Path, num_workers: int, when: str) -> None:
    """torch's shuffled DataLoader takes its order from the random numbers of the process; dropout goes on with them."""

    def run(folder: Path, epochs_seen: int, resume: Path | None) -> dict[str, object]:
        L.seed_everything(7, workers=True, verbose=False)
        torch.rand(11 if resume else 3)  # other random numbers were drawn before
        keep = ModelCheckpoint(
            folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=when != "after validation"
        )
        run = trainer(folder, max_epochs=4, callbacks=[keep, _StopAfter(epochs_seen)])
        module = TernarySNNModule(**TINY, lr=0.05)
        module.network.model.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), module.network.model.fc)
        loader = DataLoader(_Augmented(), batch_size=8, shuffle=True, num_workers=num_workers)
        run.fit(module, loader, DataLoader(_Augmented(), batch_size=24), ckpt_path=resume)
        checkpoint = torch.load(folder / f"epoch={epochs_seen - 1}.ckpt", weights_only=True)
        return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"][0]}

    whole = run(tmp_path / "whole", 4, None)
    run(tmp_path / "first", 2, None)
    resumed = run(tmp_path / "second", 4, tmp_path / "first" / "epoch=1.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


class _StopAfter(L.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def _loader(x: torch.Tensor, y: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=4)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            torch.full((4, 1, 8, 8), 0.1).index_fill(0, torch.tensor([2]), float("nan")),
            torch.zeros(4),
            r"NaN.*\[2\] of 4",
        ),
        (torch.full((4, 1, 8, 8), float("inf")), torch.zeros(4), "infinite"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), r"images \[B, 1, H, W\].*\(4, 3, 8, 8\)"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), 10), "labels run from 10 to 10, expected 0 to 9"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), -1), "labels run from -1"),
    ],
)
def test_bad_batch(tmp_path: Path, x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    run = trainer(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=message):
        run.fit(TernarySNNModule(**TINY), _loader(x, y.long()))


def test_bad_batch_in_prediction(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NaN"):
        trainer(tmp_path).predict(TernarySNNModule(**TINY), DataLoader(torch.full((2, 1, 8, 8), float("nan"))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet43"}, "did you mean .*resnet34"),
        ({"timesteps": 0}, "timesteps .* 0"),
        ({"opt": "adamww"}, "no optimizer 'adamww'; it has adamw"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernarySNNModule(**options)


@pytest.mark.parametrize(
    ("precision", "device", "instructions", "is_slow"),
    [
        ("bf16-mixed", "cpu", {"avx2"}, True),
        ("bf16-true", "cpu", {"avx2", "avx512_vnni"}, True),
        ("bf16-mixed", "cpu", {"avx2", "avx512_bf16"}, False),
        ("bf16-mixed", "cpu", {"avx2", "avx_ne_convert"}, False),
        ("bf16-mixed", "cpu", {"neon"}, False),  # nothing is known of it
        ("32-true", "cpu", {"avx2"}, False),
        ("bf16-mixed", "cuda", {"avx2"}, False),
    ],
)
def test_bfloat16_without_instructions(precision: str, device: str, instructions: set[str], is_slow: bool) -> None:
    advice = slow_precision(precision, device, instructions.__contains__)
    assert (advice is not None) == is_slow
    assert not is_slow or "--trainer.precision=32-true" in advice


def test_a_fit_says_that_its_precision_is_slow_here(tmp_path: Path) -> None:
    """Whatever processor this is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1, precision="bf16-mixed").fit(TernarySNNModule(**TINY), DigitsDataModule())
    said = [str(warning.message) for warning in caught if "instructions for bfloat16" in str(warning.message)]
    advice = slow_precision("bf16-mixed", "cpu")
    assert said == ([] if advice is None else [advice])


def test_frames_train_too(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY | {"num_classes": 3})
    data = _loader(torch.randn(8, 2, 1, 8, 8), torch.randint(3, (8,)))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    assert run.global_step == 2
    assert "val/acc5" not in run.validate(module, data, verbose=False)[0]  # with three classes it would say nothing


def test_channels_last_gives_the_same_training(tmp_path: Path) -> None:
    weights = []
    for channels_last in (False, True):
        L.seed_everything(1, verbose=False)
        module = TernarySNNModule(**TINY, channels_last=channels_last).double()
        trainer = L.Trainer(default_root_dir=tmp_path, max_steps=2, accelerator="cpu", logger=False,
                            enable_checkpointing=False, enable_progress_bar=False, precision="64-true")  # fmt: skip
        trainer.fit(module, DigitsDataModule(batch_size=16))
        conv = next(m for m in module.network.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1)
        assert conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        weights.append([p.detach() for p in module.network.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b)
