"""A short training of a small network with callbacks, and what it has logged."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_tspike import TernarySNNModule
from lightning_tspike.data import DigitsDataModule

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


def loggers(folder: Path) -> list[CSVLogger | TensorBoardLogger]:
    return [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tb")]


class Recorder(L.Callback):
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
