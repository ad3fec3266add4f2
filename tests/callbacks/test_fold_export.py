"""FoldExport: folded folders beside checkpoints, whatever happens to disk and process."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.callbacks import FoldExport, LastCheckpoint
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.store.folder import read_folder, write_folder
from tests.callbacks.short_fit import TINY, fit


@pytest.mark.parametrize("save_weights_only", [False, True])
def test_folded_folder_beside_every_kept_checkpoint(tmp_path: Path, save_weights_only: bool) -> None:
    folder = tmp_path / "checkpoints"
    keep = ModelCheckpoint(
        folder,
        "{epoch}",
        monitor="val/acc1",
        mode="max",
        save_top_k=2,
        save_last=True,
        save_weights_only=save_weights_only,
    )
    export = FoldExport()
    fit(tmp_path, [keep, export], max_epochs=5)

    checkpoints = sorted(folder.glob("*.ckpt"))
    assert len(checkpoints) == 3
    assert sorted(export.folders.values()) == [path.with_suffix(".folded") for path in checkpoints]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [path.name for path in checkpoints] + [path.with_suffix(".folded").name for path in checkpoints]
    )
    x = torch.randn(3, 1, 8, 8)
    for path in checkpoints:
        unfolded = TernarySNNModule(**TINY)
        unfolded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        expected, _ = fold(unfolded.network)
        loaded = zoo.load(path.with_suffix(".folded"))
        assert torch.equal(loaded(x), expected(x))
        assert not any("amplitude" in name for name in loaded.state_dict())


def test_folder_knows_the_preprocessing(tmp_path: Path) -> None:
    from lightning_tspike.store.folder import read_folder

    keep = ModelCheckpoint(tmp_path / "checkpoints", "best")
    fit(tmp_path, [keep, FoldExport()])
    _, config = read_folder(tmp_path / "checkpoints" / "best.folded")
    assert config.preprocessing.to_dict() == DigitsDataModule().preprocessing
    report = json.loads((tmp_path / "checkpoints/best.folded/fold_report.json").read_text())
    widths = TINY["backbone_kwargs"]["widths"]
    assert report["layers"][0]["dense_macs"] == 9 * widths[0] * 8 * 8  # the digits have 8 x 8 pixels


def test_checkpoints_between_validations(tmp_path: Path) -> None:
    """A checkpoint saved in the middle of an epoch is folded when training goes on, the last one at the end."""
    keep = ModelCheckpoint(tmp_path / "checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, [keep, FoldExport()], max_epochs=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.folded")) == ["step=2.folded", "step=4.folded"]


class _Spoil(L.Callback):
    """Makes the weights useless in the second epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: TernarySNNModule) -> None:
        if trainer.current_epoch == 1:
            pl_module.network.model.fc.weight.data.fill_(float("nan"))


def test_a_checkpoint_that_cannot_be_folded_does_not_end_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    keep = ModelCheckpoint(folder, "best", save_last=True, save_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match=r"no folded copy of .*last\.ckpt, training goes on: .*not finite"):
        trainer, _ = fit(tmp_path, [_Spoil(), keep, FoldExport()], max_epochs=3, limit_val_batches=0)
    assert trainer.current_epoch == 3
    assert not list(folder.glob("*.folded"))  # that of the first epoch went with its weights


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more to any file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    config = NetworkConfig("tspike_resnet_small", 10, 1)
    old, new = (fold(create_network(config))[0] for _ in range(2))
    write_folder(tmp_path / "net", old)
    with files_of_at_most(20_000), pytest.raises(OSError, match=r"File too large|os error 27"):
        write_folder(tmp_path / "net", new)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(read_folder(tmp_path / "net")[0](x), old(x))


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_full_disk_in_training(tmp_path: Path, on_error: str) -> None:
    """There is room when the checkpoint is saved, at the end of the epoch, and none when it is folded."""

    class FullDisk(L.Callback):
        limit = files_of_at_most(2_000)

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: TernarySNNModule) -> None:
            if trainer.current_epoch == 1:
                self.limit.__enter__()

        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.current_epoch == 1 and trainer.global_step == 6:
                self.limit.__exit__(None, None, None)

    keep = ModelCheckpoint(tmp_path / "checkpoints", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    callbacks = [FullDisk(), keep, FoldExport(on_error=on_error)]
    if on_error == "warn":
        with pytest.warns(UserWarning, match=r"no folded copy of .*epoch=0\.ckpt, training goes on: .*(too large|27)"):
            trainer, _ = fit(tmp_path, callbacks, max_epochs=3)
        assert trainer.current_epoch == 3
        assert sorted(p.name for p in keep_folder(tmp_path)) == [
            *("epoch=0.ckpt", "epoch=1.ckpt", "epoch=1.folded", "epoch=2.ckpt", "epoch=2.folded")
        ]
    else:
        try:
            with pytest.raises(OSError, match="too large|27"):
                fit(tmp_path, callbacks, max_epochs=3)
        finally:
            FullDisk.limit.__exit__(None, None, None)
        assert [p.name for p in keep_folder(tmp_path)] == ["epoch=0.ckpt"]


def keep_folder(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """Processes that write two networks to one folder in turn, killed at random moments by SIGKILL."""
    script = textwrap.dedent("""
        import os, random, signal, time, torch
        from lightning_tspike.folding import fold
        from lightning_tspike.store.folder import read_folder, write_folder
        from lightning_tspike.models import create_network
        from lightning_tspike.network import NetworkConfig

        torch.set_num_threads(1)  # threads do not survive a fork
        networks = [fold(create_network(NetworkConfig("tspike_resnet_small", 10, 1)))[0] for _ in range(2)]
        states = [network.model.state_dict() for network in networks]
        write_folder("net", networks[0])
        start = time.perf_counter()
        write_folder("net", networks[0])
        took = time.perf_counter() - start
        found, leftovers = [0, 0], 0
        for attempt in range(240):
            if attempt >= 40 and min(found) > 0 and leftovers > 0:
                break  # on a busy machine it takes more kills to see everything
            said, say = os.pipe()
            if (pid := os.fork()) == 0:
                while True:
                    for network in reversed(networks):
                        os.write(say, b".")
                        write_folder("net", network)
            rng = random.Random(attempt)
            for _ in range(rng.randint(1, 3)):
                os.read(said, 1)  # it begins another write
            time.sleep(took * rng.uniform(0, 1.2))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(said), os.close(say)
            state = read_folder("net")[0].model.state_dict()  # raises where there is half a folder, or none
            equal = [all(torch.equal(t, s[name]) for name, t in state.items()) for s in states]
            assert sum(equal) == 1
            found[equal.index(True)] += 1
            leftovers += len(os.listdir()) > 1
        print(found, leftovers)
        assert min(found) > 0 and leftovers > 0, "killed too early or too late to see anything"
        """)
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_a_killed_run_has_left_is_swept_away(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".best.folded.0123abcd").mkdir(parents=True)
    (folder / ".best.folded.0123abcd" / "config.json").write_text("{}")
    fit(tmp_path, [ModelCheckpoint(folder, "best"), FoldExport()], max_epochs=1)
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "best.folded"]


class _Look(L.Callback):
    """Writes down which folded folders there are while an epoch is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[str]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: TernarySNNModule) -> None:
        self.seen.append(sorted(path.name for path in self.folder.glob("*.folded")))


def test_the_last_epochs_copy_comes_at_the_end(tmp_path: Path) -> None:
    """It would be another one after every epoch; and an earlier one never stays beside a later checkpoint."""
    folder = tmp_path / "checkpoints"
    fit(tmp_path, [LastCheckpoint(), FoldExport()], max_epochs=1)
    first = (folder / "last.folded/model.safetensors").read_bytes()
    look = _Look(folder)
    trainer = L.Trainer(
        default_root_dir=tmp_path, callbacks=[LastCheckpoint(), look, FoldExport()], accelerator="cpu", max_epochs=3,
        limit_train_batches=5, limit_val_batches=1, logger=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(TernarySNNModule(**TINY), DigitsDataModule(batch_size=32), ckpt_path=folder / "last.ckpt")
    assert look.seen == [[], []]
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(zoo.load(folder / "last.folded")(x), zoo.load(folder / "last.ckpt")(x))
    assert (folder / "last.folded/model.safetensors").read_bytes() != first


def test_a_copy_without_its_checkpoint_goes(tmp_path: Path) -> None:
    """As a kill between the two leaves it; a folder that somebody has folded there by hand stays."""
    folder = tmp_path / "checkpoints"
    fit(tmp_path, [ModelCheckpoint(folder, "{epoch}"), FoldExport()], max_epochs=1)
    (folder / "epoch=0.ckpt").unlink()
    write_folder(folder / "mine.folded", fold(create_network(NetworkConfig("tspike_resnet_small", 10, 1)))[0])
    fit(tmp_path, [ModelCheckpoint(folder, "best"), FoldExport()], max_epochs=1)
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "best.folded", "mine.folded"]


class _Sharded(TernarySNNModule):
    def configure_model(self) -> None:
        pass


@pytest.mark.usefixtures("one_process_group")
def test_shards_are_refused(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "checkpoints", "best")
    with pytest.raises(MisconfigurationException, match="ModelParallelStrategy shards the weights.*full checkpoints"):
        fit(tmp_path, [keep, FoldExport()], module=_Sharded(**TINY), strategy=ModelParallelStrategy(), devices=1)


class _Marking(SingleDeviceStrategy):
    """Marks weights as torch's FSDP does with those that it gathers; FSDP itself runs on GPUs alone."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = super().lightning_module_state_dict()
        for weight in state.values():
            weight._has_been_cloned = True
        return state


def test_gathered_weights(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "checkpoints", "best")
    fit(tmp_path, [keep, FoldExport(on_error="raise")], strategy=_Marking())
    assert zoo.load(tmp_path / "checkpoints" / "best.folded").timesteps == TINY["timesteps"]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """DDP by gloo with every callback: one folder for each checkpoint, every number logged once, and it ends."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import lightning as L
        import torch
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger
        from lightning_tspike import TernarySNNModule
        from lightning_tspike.callbacks import (
            AmplitudeLogger, BestCheckpoint, EnergyMonitor, FiringRateMonitor, FoldExport, LastCheckpoint,
            MembraneHistogram
        )
        from lightning_tspike.training.checkpoint_io import AtomicCheckpointIO
        from lightning_tspike.data import DigitsDataModule

        if __name__ == "__main__":
            L.seed_everything(1)
            keep = ModelCheckpoint(filename="{{epoch}}", monitor="val/acc1", mode="max", save_top_k=2)
            watching = [AmplitudeLogger(2), EnergyMonitor(1), FiringRateMonitor(2), FoldExport(), MembraneHistogram(2)]
            trainer = L.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, limit_train_batches=4, log_every_n_steps=2,
                logger=CSVLogger(".", name="", version="run"), enable_progress_bar=False,
                callbacks=[keep, BestCheckpoint(), LastCheckpoint(), *watching], plugins=[AtomicCheckpointIO()],
            )
            trainer.fit(TernarySNNModule(**{TINY!r}), DigitsDataModule())
            torch.distributed.destroy_process_group()
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    checkpoints = {name for name in names if name.endswith(".ckpt")}
    assert len(checkpoints) == 4
    assert {"best.ckpt", "last.ckpt"} < checkpoints
    assert names - checkpoints == {name.replace(".ckpt", ".folded") for name in checkpoints}
    for name in names - checkpoints:
        zoo.load(tmp_path / "run" / "checkpoints" / name)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for tag, steps in {
        "amplitude/act1": [2, 4, 6, 8, 10, 12],
        "membrane/act1/fires": [0, 2, 4, 6, 8, 10],
        "firing_rate/act1/positive": [0, 2, 4, 6, 8, 10],
        "energy/synops": [4, 8, 12],
    }.items():
        assert sorted({int(row["step"]) for row in rows if row[tag]}) == steps, tag
        assert len([row for row in rows if row[tag]]) == len(steps) + (tag == "energy/synops"), tag  # and at the end
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"energy.json", "membrane.json", "amplitudes.png"}
    assert not list(tmp_path.rglob("*.partial"))
