"""The callbacks: numbers in real log files, folders on disk, and no influence on the training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tspike import TernarySNNModule
from lightning_tspike._calls import running
from lightning_tspike.analysis.run_logs import read_logs
from lightning_tspike.callbacks import (
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
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, ternarize
from tests.callbacks.short_fit import TINY, Recorder, csv_rows, fit, loggers


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tb" / "version_0"), size_guidance={"histograms": 0, "scalars": 0}).Reload()


def test_amplitudes_in_csv_and_tensorboard(tmp_path: Path) -> None:
    recorder = Recorder()
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
    recorder = Recorder()
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
    recorder = Recorder()
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
