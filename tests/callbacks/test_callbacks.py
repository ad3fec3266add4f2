"""The callbacks: numbers in real log files, folders on disk, and no influence on the training."""

from __future__ import annotations

import csv
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tspike import TernarySNNModule
from lightning_tspike._calls import running
from lightning_tspike.analysis import write_report
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.analysis.run_logs import read_logs
from lightning_tspike.callbacks import (
    REPORT_SECTIONS,
    AmplitudeLogger,
    EnergyMonitor,
    FiringRateMonitor,
    FoldExport,
    MembraneHistogram,
    PredictionWriter,
)
from lightning_tspike.callbacks.amplitude import AMPLITUDES
from lightning_tspike.callbacks.firing_rate import FIRING_RATES
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, ternarize

TINY = {
    "backbone": "tspike_resnet_small",
    "num_classes": 10,
    "in_chans": 1,
    "timesteps": 2,
    "backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]},
}


def fit(
    folder: Path, callbacks: list[L.Callback], *, module: L.LightningModule | None = None, **options: object
) -> tuple[L.Trainer, L.LightningModule]:
    L.seed_everything(3, verbose=False)
    module = module or TernarySNNModule(**TINY)
    defaults = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2,
                "limit_train_batches": 5, "limit_val_batches": 1, "logger": False}  # fmt: skip
    trainer = L.Trainer(default_root_dir=folder, callbacks=callbacks, **defaults | options)
    trainer.fit(module, DigitsDataModule(batch_size=32))
    return trainer, module


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tb" / "version_0"), size_guidance={"histograms": 0, "scalars": 0}).Reload()


def loggers(folder: Path) -> list[CSVLogger | TensorBoardLogger]:
    return [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tb")]


class _Recorder(L.Callback):
    """What the logs are compared with: amplitudes after each step, membrane potentials during each step."""

    def __init__(self) -> None:
        self.amplitudes: dict[int, dict[str, float]] = {}
        self.membranes: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: TernarySNNModule, *_: object) -> None:
        step, self.handles = trainer.global_step, []
        for name, neuron in pl_module.network.neurons().items():

            def keep(module, args, _out, name=name):  # noqa: ANN001, ANN202
                u = module.membrane_potential(args[0].detach()) / module.threshold.detach()
                self.membranes.setdefault(step, {})[name] = u

            self.handles.append(neuron.register_forward_hook(keep))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TernarySNNModule, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.amplitudes[trainer.global_step] = {
            name: neuron.amplitude.item()
            for name, neuron in pl_module.network.neurons().items()
            if neuron.raw_amplitude is not None
        }


def test_amplitudes_in_csv_and_tensorboard(tmp_path: Path) -> None:
    recorder = _Recorder()
    fit(tmp_path, [recorder, AmplitudeLogger(every_n_steps=2)], logger=loggers(tmp_path))
    names = list(recorder.amplitudes[2])
    rows = {int(row["step"]): row for row in csv_rows(tmp_path) if row.get("amplitude/act1")}
    assert sorted(rows) == [2, 4, 6, 8, 10]
    tensorboard = events(tmp_path)
    for name in names:
        scalars = {event.step: event.value for event in tensorboard.Scalars(f"amplitude/{name}")}
        for step in rows:
            assert float(rows[step][f"amplitude/{name}"]) == recorder.amplitudes[step][name]
            assert scalars[step] == pytest.approx(recorder.amplitudes[step][name])
    assert recorder.amplitudes[10]["act1"] != 1


def test_amplitudes_per_channel(tmp_path: Path) -> None:
    _, module = fit(
        tmp_path,
        [AmplitudeLogger(every_n_steps=5)],
        module=TernarySNNModule(**TINY, amplitude="channel"),
        logger=loggers(tmp_path),
    )
    row = next(row for row in csv_rows(tmp_path) if row["step"] == "10" and row.get("amplitude/act1/mean"))
    amplitude = module.network.model.act1.amplitude
    for name in ("min", "mean", "max"):
        assert float(row[f"amplitude/act1/{name}"]) == pytest.approx(getattr(amplitude, name)().item())


def test_membrane_shares_of_other_neurons(tmp_path: Path) -> None:
    """Binary neurons fire above the threshold alone; the arctan surrogate is 0 nowhere."""
    module = TernarySNNModule(**TINY, neuron="binary_lif", surrogate="arctan", learn_threshold=True)
    recorder = _Recorder()
    fit(tmp_path, [recorder, MembraneHistogram(every_n_steps=4)], module=module, logger=loggers(tmp_path))
    rows = {int(row["step"]): row for row in csv_rows(tmp_path) if row.get("membrane/act1/fires")}
    for step, row in rows.items():
        for name, u in recorder.membranes[step].items():
            assert float(row[f"membrane/{name}/fires"]) == pytest.approx((u >= 1).double().mean().item(), abs=1e-4)
            assert float(row[f"membrane/{name}/no_gradient"]) == 0


def test_membrane_histograms_of_several_levels() -> None:
    """The gradient reaches to the end of the last level, 2 * levels thresholds from 0."""
    network = create_network(NetworkConfig("tspike_resnet_small", 10, timesteps=2, levels=3, reset="soft")).eval()
    x = 3 * torch.randn(4, 3, 16, 16)
    with MembraneHistogram(span=6).observe(network) as histograms:
        network(x)
    with running(network.call(x)):
        u = network.model.act1.membrane_potential(network.model.bn1(network.model.conv1(x))) / 0.5
    assert histograms["act1"].no_gradient == pytest.approx((u.abs() >= 6).double().mean().item())
    assert histograms["act1"].fires == pytest.approx((u.abs() >= 1).double().mean().item())


def test_membrane_histograms_equal_those_by_hand(tmp_path: Path) -> None:
    recorder = _Recorder()
    fit(tmp_path, [recorder, MembraneHistogram(every_n_steps=4, bins=48, span=6)], logger=loggers(tmp_path))
    rows = {int(row["step"]): row for row in csv_rows(tmp_path) if row.get("membrane/act1/fires")}
    assert sorted(rows) == [0, 4, 8]
    tensorboard = events(tmp_path)
    for step, row in rows.items():
        for name, u in recorder.membranes[step].items():
            inside = u.clamp(-6, 6).numpy().ravel()
            counts, edges = np.histogram(inside, 48, (-6, 6))
            logged = {event.step: event.histogram_value for event in tensorboard.Histograms(f"membrane/{name}")}[step]
            # histc rounds in float32: values next to an edge may be counted on its other side
            beside = (np.abs(inside[:, None] - edges[1:-1]).min(1) < 1e-5).sum()
            assert np.abs(np.array(logged.bucket) - counts).sum() <= 2 * beside
            assert beside <= 0.01 * inside.size
            assert logged.bucket_limit == pytest.approx(edges[1:])
            assert logged.num == u.numel()

            assert float(row[f"membrane/{name}/fires"]) == pytest.approx((u.abs() >= 1).double().mean().item())
            assert float(row[f"membrane/{name}/no_gradient"]) == pytest.approx((u.abs() >= 2).double().mean().item())
            for q in (5, 25, 50, 75, 95):
                exact = np.quantile(inside, q / 100)
                assert float(row[f"membrane/{name}/q{q:02d}"]) == pytest.approx(exact, abs=12 / 48)


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1)
    watching = [
        *(checkpoint, AmplitudeLogger(1), MembraneHistogram(1), FiringRateMonitor(1), EnergyMonitor(1), FoldExport())
    ]
    _, watched = fit(tmp_path, watching, logger=loggers(tmp_path))
    _, alone = fit(tmp_path / "alone", [])
    for name, tensor in alone.state_dict().items():
        assert torch.equal(watched.state_dict()[name], tensor), name


def test_no_hook_outlives_a_step(tmp_path: Path) -> None:
    _, module = fit(tmp_path, [MembraneHistogram(1)], logger=loggers(tmp_path)[:1])
    assert not any(neuron._forward_hooks for neuron in module.network.neurons().values())


class _OwnModule(TernarySNNModule):
    def __init__(self) -> None:
        super().__init__(**TINY)
        self.network = ternarize(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU()), 2)


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (AmplitudeLogger(), {}, "AmplitudeLogger has nowhere to log"),
        (MembraneHistogram(), {}, "MembraneHistogram has nowhere to log"),
        (FiringRateMonitor(), {}, "FiringRateMonitor has nowhere to log"),
        (EnergyMonitor(), {}, "EnergyMonitor has nowhere to log"),
        (FoldExport(wandb_artifact=True), {}, "needs a WandbLogger"),
        (FoldExport(), {"enable_checkpointing": False}, "enable_checkpointing"),
        (FoldExport(), {"module": _OwnModule()}, "a name can rebuild"),
    ],
)
def test_nothing_to_do_is_said_at_the_start(
    tmp_path: Path, callback: L.Callback, options: dict[str, object], message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, [callback], **options)


def test_module_without_a_network(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", callbacks=[FoldExport()])
    with pytest.raises(MisconfigurationException, match="BoringModel has NoneType"):
        trainer.fit(BoringModel())


@pytest.mark.parametrize(
    "make",
    [
        lambda: AmplitudeLogger(0),
        lambda: MembraneHistogram(every_n_steps=-1),
        lambda: MembraneHistogram(bins=1),
        lambda: MembraneHistogram(span=2),
        lambda: FiringRateMonitor(0),
        lambda: EnergyMonitor(0),
        lambda: EnergyMonitor(images=0),
        lambda: EnergyMonitor(mac_picojoules=0),
        lambda: EnergyMonitor(accounting="loihi"),
        lambda: FoldExport(on_error="ignore"),
    ],
)
def test_options_out_of_range(make) -> None:  # noqa: ANN001
    with pytest.raises(MisconfigurationException, match="must be"):
        make()


def test_predictions_are_written(tmp_path: Path) -> None:
    module, data = TernarySNNModule(**TINY), DigitsDataModule(batch_size=100)
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=[PredictionWriter()],
        enable_progress_bar=False,
    )
    probabilities = torch.cat(trainer.predict(module, data))
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert [int(row["class"]) for row in rows] == probabilities.argmax(1).tolist()
    assert float(rows[7]["probability"]) == pytest.approx(probabilities[7].max().item(), abs=1e-6)


class _Spikes(L.Callback):
    """Spikes of every layer in every step, [T, everything]."""

    def __init__(self) -> None:
        self.spikes: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: TernarySNNModule, *_: object) -> None:
        seen = self.spikes[trainer.global_step] = {}
        self.handles = [
            neuron.register_forward_hook(
                lambda _m, _a, y, name=name: seen.update({name: y.detach().unflatten(0, (2, -1)).flatten(1).sign()})
            )
            for name, neuron in pl_module.network.neurons().items()
        ]

    def on_train_batch_end(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def test_firing_rates_and_entropy_equal_those_by_hand(tmp_path: Path) -> None:
    recorder = _Spikes()
    fit(tmp_path, [recorder, FiringRateMonitor(every_n_steps=4)], logger=loggers(tmp_path))
    rows = {int(row["step"]): row for row in csv_rows(tmp_path) if row.get("firing_rate/act1/positive")}
    assert sorted(rows) == [0, 4, 8]
    tensorboard = events(tmp_path)
    for step, row in rows.items():
        for name, spikes in recorder.spikes[step].items():
            shares = {sign: (spikes == value).double() for sign, value in (("positive", 1), ("negative", -1))}
            for sign, share in shares.items():
                assert float(row[f"firing_rate/{name}/{sign}"]) == pytest.approx(share.mean().item())
                for t in (1, 2):
                    assert float(row[f"firing_rate/{name}/{sign}_t{t}"]) == pytest.approx(share[t - 1].mean().item())
                logged = {e.step: e.value for e in tensorboard.Scalars(f"firing_rate/{name}/{sign}")}
                assert logged[step] == pytest.approx(share.mean().item())
            p = np.array([(spikes == value).double().mean().item() for value in (-1, 0, 1)])
            assert float(row[f"entropy/{name}/signed"]) == pytest.approx(-(p * np.log2(p)).sum())
            p = np.array([p[1], 1 - p[1]])
            assert float(row[f"entropy/{name}/unsigned"]) == pytest.approx(-(p * np.log2(p)).sum())


def test_energy_is_that_of_the_folded_network_on_validation_images(tmp_path: Path) -> None:
    monitor = EnergyMonitor(every_n_epochs=2, images=20, ac_picojoules=0.5)
    _, module = fit(tmp_path, [monitor], logger=loggers(tmp_path), max_epochs=3)
    rows = [row for row in csv_rows(tmp_path) if row.get("energy/synops")]
    assert [int(row["step"]) for row in rows] == [10, 15]  # after the second epoch, and at the end
    data = DigitsDataModule(batch_size=32)
    data.setup("fit")
    images = next(iter(data.val_dataloader()))[0][:20]
    report = measure_energy(fold(module.network, integer_pools=True)[0], images, ac_picojoules=0.5)
    assert float(rows[-1]["energy/synops"]) == pytest.approx(report.synops)
    assert float(rows[-1]["energy/macs"]) == pytest.approx(report.macs)
    assert float(rows[-1]["energy/microjoules"]) == pytest.approx(report.total_picojoules / 1e6)
    assert float(rows[-1]["energy/ann_microjoules"]) == pytest.approx(report.ann_picojoules / 1e6)
    assert float(rows[-1]["energy/ratio"]) == pytest.approx(report.total_picojoules / report.ann_picojoules)
    written = json.loads((tmp_path / "csv" / "version_0" / "energy.json").read_text())
    assert written["layers"] == json.loads(json.dumps(report.to_dict()))["layers"]


def test_energy_by_the_papers_accounting(tmp_path: Path) -> None:
    fit(tmp_path, [EnergyMonitor(accounting="paper")], logger=loggers(tmp_path))
    (row,) = (row for row in csv_rows(tmp_path) if row.get("energy/synops"))
    macs, synops, signs = (float(row[f"energy/{name}"]) for name in ("macs", "synops", "signs"))
    assert signs > 0
    assert float(row["energy/microjoules"]) == pytest.approx((25 * macs + 0.077 * synops + 3.7 * signs) / 1e6)
    run = tmp_path / "csv" / "version_0"
    assert json.loads((run / "energy.json").read_text())["accounting"] == "paper"
    page = write_report(run, sections=REPORT_SECTIONS).read_text()
    assert "accounting paper: 25.0 pJ per MAC, 0.077 pJ per accumulate, 3.7 pJ per sign" in page
    assert f"neurons: {signs:,.0f} signs" in page


@pytest.mark.parametrize(
    ("accounting", "name"), [("paper", "paper"), ("{ac_picojoules: 0.5, sign_picojoules: 0.1}", "own")]
)
def test_accounting_in_a_recipe(tmp_path: Path, accounting: str, name: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "callback:\n  class_path: lightning_tspike.callbacks.EnergyMonitor\n"
        f"  init_args: {{accounting: {accounting}}}\n"
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=L.Callback)
    parser.add_argument("--config", action="config")
    monitor = parser.instantiate_classes(parser.parse_args(["--config", str(recipe)])).callback
    assert monitor.accounting.name == name


def test_energy_without_validation_takes_training_images(tmp_path: Path) -> None:
    fit(tmp_path, [EnergyMonitor()], logger=loggers(tmp_path), limit_val_batches=0)
    assert [row["step"] for row in csv_rows(tmp_path) if row.get("energy/synops")] == ["10"]


def test_what_else_is_learned_and_gradient_norms(tmp_path: Path) -> None:
    """Cancelled amplitudes are logged apart; decay, threshold and the norm of each amplitude's gradient as well."""

    class Gradients(L.Callback):
        def __init__(self) -> None:
            self.norms: dict[int, dict[str, float]] = {}

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: TernarySNNModule, _: object) -> None:
            self.norms[trainer.global_step + 1] = {
                name: neuron.raw_amplitude.grad.norm().item() for name, neuron in pl_module.network.neurons().items()
            }

    gradients = Gradients()
    options = {"learn_decay": True, "learn_threshold": True, "freeze_cancelled": False}
    module = TernarySNNModule(**TINY, **options)
    effects = {info.name: info.effect for info in module.network.report().neurons}
    assert set(effects.values()) == {"live", "cancelled"}
    fit(tmp_path, [gradients, AmplitudeLogger(every_n_steps=5)], module=module, logger=loggers(tmp_path))
    row = next(row for row in csv_rows(tmp_path) if row["step"] == "10" and row.get("amplitude/act1"))
    for name, neuron in module.network.neurons().items():
        tag = {"live": "amplitude", "cancelled": "amplitude_cancelled"}[effects[name]]
        assert float(row[f"{tag}/{name}"]) == pytest.approx(neuron.amplitude.item())
        assert float(row[f"amplitude_gradient/{name}"]) == pytest.approx(gradients.norms[10][name])
        assert float(row[f"decay/{name}"]) == pytest.approx(neuron.decay.item())
        assert float(row[f"threshold/{name}"]) == pytest.approx(neuron.firing_threshold.item())
    assert not {f"amplitude/{name}" for name, effect in effects.items() if effect == "cancelled"} & row.keys()
    images = EventAccumulator(str(tmp_path / "tb" / "version_0")).Reload().Images("amplitudes")
    assert [image.step for image in images] == [10]
    with Image.open(tmp_path / "csv" / "version_0" / "amplitudes.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 100  # drawn, not blank


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from the run's own file, as `wandb sync` would."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    recorder = _Recorder()
    logger = WandbLogger(name="digits", save_dir=tmp_path, offline=True, id="run1")
    keep = ModelCheckpoint(filename="best", monitor="val/acc1", mode="max")
    watching = [AmplitudeLogger(5), MembraneHistogram(5), FiringRateMonitor(5), EnergyMonitor()]
    trainer, _ = fit(tmp_path, [recorder, keep, FoldExport(wandb_artifact=True), *watching], logger=logger)
    logger.experiment.finish()

    file = next(tmp_path.glob("wandb/offline-run-*/run-run1.wandb"))
    deadline = time.monotonic() + 60  # W&B's own process may still be writing when finish() has returned
    while (read := _read_wandb(file)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    history, artifacts = read
    amplitudes = {row["trainer/global_step"]: row["amplitude/act1"] for row in history if "amplitude/act1" in row}
    assert amplitudes == {step: recorder.amplitudes[step]["act1"] for step in (5, 10)}
    histograms = {row["trainer/global_step"]: row for row in history if "membrane/act1/_type" in row}
    assert sorted(histograms) == [0, 5]
    for step, histogram in histograms.items():
        u = recorder.membranes[step]["act1"].clamp(-6, 6).numpy().ravel()
        expected, edges = np.histogram(u, 96, (-6, 6))
        assert histogram["membrane/act1/_type"] == "histogram"
        assert histogram["membrane/act1/bins"] == pytest.approx(edges)
        counts = np.array(histogram["membrane/act1/values"])
        assert counts.sum() == len(u)
        assert np.abs(counts - expected).sum() <= 0.01 * len(u)  # rounding beside the edges
    assert any("firing_rate/act1/positive" in row for row in history)
    assert any("energy/ratio" in row for row in history)
    assert any(row.get("amplitudes/_type") == "image-file" for row in history)
    assert artifacts == {"folded-run1": {"config.json", "model.safetensors", "fold_report.json", "README.md"}}
    folder = Path(trainer.checkpoint_callback.best_model_path).parents[1]
    assert {"membrane.json", "energy.json", "amplitudes.png"} <= {path.name for path in folder.iterdir()}


def _log_records(log: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log format, in which W&B writes: blocks of 32 KiB of (checksum, length, type, data)."""
    place, record = 7, b""  # W&B's own header
    while place + 7 <= len(log):
        if (room := -place % 32768) and room < 7:
            place += room  # too little for another chunk: padding
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def _read_wandb(file: Path) -> tuple[list[dict[str, Any]], dict[str, set[str]]] | None:
    """Rows of the history, and the names of the files in every artifact; None while the last record is missing."""
    from wandb.proto import wandb_internal_pb2

    history, artifacts, is_complete = [], {}, False
    for data in _log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        if record.WhichOneof("record_type") == "artifact":
            artifacts[record.artifact.name] = {entry.path for entry in record.artifact.manifest.contents}
        if record.WhichOneof("record_type") == "request":
            artifact = record.request.log_artifact.artifact
            if artifact.name:
                artifacts[artifact.name] = {entry.path for entry in artifact.manifest.contents}
        is_complete |= record.WhichOneof("record_type") == "exit"
    return (history, artifacts) if is_complete else None


def test_a_resumed_run_remembers_its_first_steps(tmp_path: Path) -> None:
    """What was measured before the interruption is in the figures, in membrane.json and in the report."""

    def watchers() -> list[L.Callback]:
        return [AmplitudeLogger(every_n_steps=2), MembraneHistogram(every_n_steps=2), FiringRateMonitor(2)]

    checkpoint = ModelCheckpoint(tmp_path / "kept", filename="last")
    fit(tmp_path / "a", [*watchers(), checkpoint], logger=CSVLogger(tmp_path / "a"))
    before = json.loads(next((tmp_path / "a").rglob("membrane.json")).read_text())
    L.seed_everything(3, verbose=False)
    resumed = watchers()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, limit_train_batches=5, limit_val_batches=1, enable_progress_bar=False,
        enable_model_summary=False, logger=CSVLogger(tmp_path / "b"), callbacks=resumed,
    )  # fmt: skip
    data = DigitsDataModule(batch_size=32)
    trainer.fit(TernarySNNModule(**TINY), data, ckpt_path=tmp_path / "kept" / "last.ckpt")
    after = json.loads(next((tmp_path / "b").rglob("membrane.json")).read_text())
    assert before["first"]["step"] == 0
    assert after["first"] == before["first"]
    assert after["last"]["step"] == 14
    history = resumed[0].state_dict()["history"]
    assert list(history) == [0, 2, 4, 6, 8, 10, 12, 14, 15]
    assert history[0]["act1"] == 1
    assert history[2]["act1"] != 1
    figures = {}
    for folder in ("a", "b"):
        logs = read_logs(next((tmp_path / folder).rglob("metrics.csv")).parent)
        for section, number in ((AMPLITUDES, -1), (FIRING_RATES, 1)):
            lines = section.draw(logs).pictures[number][1].axes[0].lines
            figures[folder, section.title] = {line.get_label(): line.get_xydata() for line in lines}
    for title in ("Amplitudes", "Firing rates"):
        assert figures["b", title].keys() == figures["a", title].keys()
        for name, line in figures["b", title].items():
            assert list(line[:, 0]) == [0, 2, 4, 6, 8, 10, 12, 14]
            before = figures["a", title][name]
            assert line[line[:, 0] == 8] == pytest.approx(before[before[:, 0] == 8])
    # used again for another run, nothing of this one is left
    fit(tmp_path / "c", resumed, logger=CSVLogger(tmp_path / "c"), max_epochs=1)
    assert list(resumed[0].state_dict()["history"]) == [0, 2, 4, 5]
    assert list(resumed[2].state_dict()["history"]) == [0, 2, 4]
    assert not list((tmp_path / "c").rglob("*_history.json"))


def test_a_long_run_keeps_a_few_amplitudes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into each checkpoint does not grow with the run; first and last values stay."""
    monkeypatch.setattr("lightning_tspike.callbacks._history._MOST_STEPS", 8)
    logger = AmplitudeLogger(every_n_steps=1)
    fit(tmp_path, [logger], logger=CSVLogger(tmp_path), limit_train_batches=20)
    steps = list(logger.state_dict()["history"])
    assert 4 <= len(steps) <= 8
    assert (steps[0], steps[-1]) == (0, 40)
    assert steps == sorted(steps)


def test_synaptic_operations_are_logged_beside_their_target(tmp_path: Path) -> None:
    module = TernarySNNModule(**TINY, synops_weight=0.5, synops_target=0.3)
    watching = [FiringRateMonitor(), EnergyMonitor()]
    fit(tmp_path, watching, module=module, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    folder = next(tmp_path.rglob("metrics.csv")).parent
    scalars = read_logs(folder).scalars
    layers = [values for tag, (_, values) in scalars.items() if tag.startswith("synops/")]
    assert len(layers) > 1
    total = scalars["synops_in_all"][1]
    assert total == pytest.approx(np.sum(layers, axis=0))
    assert all(0 < share < 1 for share in total)
    assert set(scalars["synops_target"][1]) == {0.3}
    assert scalars["train/synops"][1][-1] == pytest.approx(total[-1])  # what the loss has seen of the same batch
    energy = json.loads((folder / "energy.json").read_text())
    read = [layer for layer in energy["layers"] if layer["synops"]]
    share = sum(layer["synops"] for layer in read) / sum(2 * layer["ann_macs"] for layer in read)
    assert scalars["energy/synops_share"][1][-1] == pytest.approx(share)
    page = write_report(folder, tmp_path / "report.html", sections=REPORT_SECTIONS).read_text()
    assert "the target is 30.0%" in page
    assert "the target in training is 30.0%" in page
