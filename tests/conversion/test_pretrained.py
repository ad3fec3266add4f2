"""Fits that start from a trained ANN or learn from one: whose weights, how often, what is left in checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tspike import TernarySNNModule
from lightning_tspike.conversion import calibrate, load_ann
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.training.losses import distillation_loss

TINY = {
    **{"backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2},
    "backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]},
}


def trainer(folder: Path, **options: object) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    return L.Trainer(default_root_dir=folder, **defaults | limits | options)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with the state_dict of a ReLU network whose weights are like no fresh one's."""
    model = timm.create_model(TINY["backbone"], num_classes=10, in_chans=1, **TINY["backbone_kwargs"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3).add_(0.02 * torch.randn_like(parameter))
    torch.save(model.state_dict(), tmp_path / "ann.pt")
    return tmp_path / "ann.pt"


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Images and labels, not augmented."""
    data = DigitsDataModule(batch_size=count)
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    return x, y


def loader(*arrays: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(*arrays), batch_size=64)


def ann(weights: Path) -> nn.Module:
    return load_ann(TINY["backbone"], weights, num_classes=10, in_chans=1, **TINY["backbone_kwargs"])


def test_a_fit_begins_with_calibration_on_training_images(tmp_path: Path, weights: Path) -> None:
    L.seed_everything(3, verbose=False)
    module = TernarySNNModule(**TINY, pretrained=str(weights), calibration_images=100, lr=0.0)
    expected = TernarySNNModule(**TINY).network
    images, labels = digits(100)
    trainer(tmp_path).fit(module, loader(torch.cat([images, images]), torch.cat([labels, labels])))
    calibrate(expected, ann(weights), images)
    trained = dict(module.network.named_parameters())
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, trained[name]), name
    for name, neuron in expected.neurons().items():
        assert torch.equal(neuron.threshold, module.network.neurons()[name].threshold), name
        assert neuron.threshold.item() != 0.5


def test_before_the_fit_it_has_the_weights_of_the_ann(weights: Path) -> None:
    state = TernarySNNModule(**TINY, pretrained=str(weights)).network.model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in ann(weights).state_dict().items())


def test_a_checkpoint_needs_the_ann_no_more(tmp_path: Path, weights: Path) -> None:
    module = TernarySNNModule(**TINY, pretrained=str(weights))
    run = trainer(tmp_path)
    run.fit(module, DigitsDataModule())
    run.save_checkpoint(tmp_path / "one.ckpt")
    weights.unlink()
    loaded = TernarySNNModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert loaded.hparams["pretrained"] is False
    assert module.hparams["pretrained"] == str(weights)
    for name, t in module.state_dict().items():
        assert torch.equal(t, loaded.state_dict()[name]), name


def test_a_resumed_run_is_not_calibrated_again(tmp_path: Path, weights: Path) -> None:
    arguments = {**TINY, "pretrained": str(weights), "lr": 0.0}
    run = trainer(tmp_path)
    run.fit(TernarySNNModule(**arguments, calibration_images=64), DigitsDataModule())
    run.save_checkpoint(tmp_path / "one.ckpt")
    module = TernarySNNModule(**arguments, calibration_images=200)  # would be calibrated to something else
    trainer(tmp_path, max_epochs=2).fit(module, DigitsDataModule(), ckpt_path=tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, saved[name]), name


def test_a_second_fit_goes_on_from_the_first(tmp_path: Path, weights: Path) -> None:
    module = TernarySNNModule(**TINY, pretrained=str(weights), lr=0.01)
    trainer(tmp_path).fit(module, DigitsDataModule())
    first = {name: p.clone() for name, p in module.named_parameters()}
    module.hparams["lr"] = 0.0
    trainer(tmp_path).fit(module, DigitsDataModule())
    assert all(torch.equal(p, first[name]) for name, p in module.named_parameters())


@pytest.mark.slow
def test_all_processes_start_alike(tmp_path: Path, weights: Path) -> None:
    """Two processes by DDP, whose first batches differ."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import lightning as L, torch
        from lightning_tspike import TernarySNNModule
        from lightning_tspike.data import DigitsDataModule

        if __name__ == "__main__":
            L.seed_everything(3, verbose=False)
            module = TernarySNNModule(**{TINY!r}, pretrained={str(weights)!r}, calibration_images=64, lr=0.0)
            trainer = L.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, limit_train_batches=1,
                limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            )
            trainer.fit(module, DigitsDataModule())
            images = next(iter(trainer.train_dataloader))[0]
            torch.save((dict(module.named_parameters()), images), f"rank{{trainer.global_rank}}.pt")
            torch.distributed.destroy_process_group()
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    (first, images), (second, others) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert not torch.equal(images, others)
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    start = ann(weights).state_dict()
    assert not torch.equal(first["network.model.fc.weight"], start["fc.weight"])


@pytest.mark.slow
def test_timm_fetches_pretrained_weights_from_the_hub(tmp_path: Path) -> None:
    """Through the Hub's client and its cache on disk, which holds weights made here under a model's true name."""
    name, classes = "resnet10t.c3_in1k", 1000
    source = timm.create_model("resnet10t", num_classes=classes)
    nn.init.normal_(source.conv1[0].weight)
    folder = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(source.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors", {"format": "pt"})
    torch.save(source.state_dict(), tmp_path / "source.pt")
    script = textwrap.dedent(f"""
        import torch
        from lightning_tspike import TernarySNNModule
        from lightning_tspike.conversion import load_ann

        source = torch.load("source.pt")
        for classes in (1000, 7):  # the classifier of 7 classes is fresh
            for name in ({name!r}, "resnet10t"):
                state = TernarySNNModule(name, classes, 1, pretrained=True).network.model.state_dict()
                same = {{key: torch.equal(t, state[key]) for key, t in source.items() if t.shape == state[key].shape}}
                assert all(same.values()) and len(same) == len(source) - 2 * (classes == 7), (name, same)
        load_ann({name!r}, num_classes=1000)
        for name, classes in (({name!r}, 7), ("resnet18", 1000), ("tspike_resnet18", 1000)):
            try:
                load_ann(name, num_classes=classes)
            except (OSError, ValueError) as error:
                print(type(error).__name__, error)
        """)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "ValueError the pretrained weights of 'resnet10t.c3_in1k' know 1000 classes, not 7" in result.stdout
    assert "OSError could not load the pretrained weights of 'resnet18'" in result.stdout
    assert "ValueError timm has no pretrained weights for 'tspike_resnet18'; give the path" in result.stdout


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file of weights .*/nowhere\.pt"):
        TernarySNNModule(**TINY, pretrained=str(tmp_path / "nowhere.pt"))
    (tmp_path / "broken.pt").write_bytes(weights.read_bytes()[:300])
    with pytest.raises(OSError, match=r"broken\.pt is damaged or holds no state_dict"):
        TernarySNNModule(**TINY, pretrained=str(tmp_path / "broken.pt"))
    with pytest.raises(ValueError, match=r"does not hold the weights of a 'resnet18'.*"):
        TernarySNNModule("resnet18", pretrained=str(weights))
    with pytest.raises(ValueError, match=r"Invalid pretrained tag.*Known are \[.*'resnet34\.a1_in1k'"):
        TernarySNNModule("resnet34.a9_in1k", pretrained=True)
    with pytest.raises(ValueError, match=r"unknown.*resnet34"):
        TernarySNNModule("resnet_34", pretrained=True)


def test_a_checkpoint_of_an_ann_is_a_file_of_weights(tmp_path: Path) -> None:
    """Trained here with ReLU; that of a spiking network is refused, for its amplitudes."""
    module = TernarySNNModule(**TINY, neuron="none")
    run = trainer(tmp_path)
    run.fit(module, DigitsDataModule())
    run.save_checkpoint(tmp_path / "ann.ckpt")
    expected = module.network.model.state_dict()
    found = ann(tmp_path / "ann.ckpt").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    run = trainer(tmp_path)
    run.fit(TernarySNNModule(**TINY), DigitsDataModule())
    run.save_checkpoint(tmp_path / "spiking.ckpt")
    with pytest.raises(ValueError, match=r"(?s)does not hold the weights of a .*raw_amplitude"):
        ann(tmp_path / "spiking.ckpt")


def test_a_file_for_other_classes_gives_all_but_the_classifier(weights: Path) -> None:
    module = TernarySNNModule(**TINY | {"num_classes": 3}, pretrained=str(weights))
    assert torch.equal(module.network.model.conv1.weight, ann(weights).conv1.weight)
    assert module.network.model.fc.weight.shape == (3, 8)


def test_batches_that_are_no_images_are_refused(tmp_path: Path, weights: Path) -> None:
    module = TernarySNNModule(**TINY, pretrained=str(weights))
    with pytest.raises(ValueError, match="none of the keys for images; it holds a dict with the keys 'sound'"):
        trainer(tmp_path).fit(module, DataLoader([{"sound": torch.zeros(1, 8, 8)}] * 4))


@pytest.mark.usefixtures("one_process_group")
def test_sharded_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    class Sharded(TernarySNNModule):
        def configure_model(self) -> None:
            pass

    module = Sharded(**TINY, pretrained=str(weights))
    with pytest.raises(MisconfigurationException, match="which ModelParallelStrategy does not keep; train with one"):
        trainer(tmp_path, strategy=ModelParallelStrategy(), devices=1).fit(module, DigitsDataModule())


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    model = timm.create_model("tspike_vgg_small", num_classes=10, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt"


def test_a_teacher_is_part_of_the_loss_and_of_nothing_else(tmp_path: Path, teacher: Path) -> None:
    module = TernarySNNModule(
        **TINY,
        teacher="tspike_vgg_small",
        teacher_weights=str(teacher),
        teacher_weight=0.3,
        teacher_temperature=2.0,
        lr=0.0,
    )
    run = trainer(tmp_path)
    x, y = digits(32)
    run.fit(module, loader(x, y))
    taught = load_ann("tspike_vgg_small", teacher, num_classes=10, in_chans=1)(x)
    logits = module.network.train()(x)
    expected = 0.7 * nn.functional.cross_entropy(logits, y) + 0.3 * distillation_loss(logits, taught, temperature=2.0)
    assert run.logged_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    run.save_checkpoint(tmp_path / "one.ckpt")
    teacher.unlink()
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == TernarySNNModule(**TINY).state_dict().keys()
    assert sum(len(g["params"]) for g in saved["optimizer_states"][0]["param_groups"]) == len(list(module.parameters()))
    TernarySNNModule.load_from_checkpoint(tmp_path / "one.ckpt")  # the teacher is looked for when a fit begins
    with pytest.raises(FileNotFoundError, match=r"teacher\.pt"):
        trainer(tmp_path).fit(module, DigitsDataModule())


def test_a_teacher_that_cannot_teach_is_refused(tmp_path: Path, teacher: Path) -> None:
    options = {"teacher": "tspike_vgg_small", "teacher_weights": str(teacher)}
    with pytest.raises(ValueError, match=r"for 3 classes"):
        trainer(tmp_path).fit(TernarySNNModule(**TINY | {"num_classes": 3}, **options), DigitsDataModule())
    frames = TensorDataset(torch.rand(4, 2, 1, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match=r"teacher looks at still images.*\(2, 2, 1, 8, 8\)"):
        trainer(tmp_path).fit(TernarySNNModule(**TINY, **options), DataLoader(frames, batch_size=2))


@pytest.mark.parametrize(
    ("option", "value"),
    [("teacher_weight", 1.5), ("teacher_temperature", 0.0), ("tmpr_weight", -0.1), ("calibration_images", 1)],
)
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{option} must .*got {value}"):
        TernarySNNModule(**TINY, **{option: value})
