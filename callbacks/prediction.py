"""Write what a network predicts to a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from ..files.atomic import whole_file

__all__ = ["PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Write one line per sample of ``trainer.predict``: index in the data, predicted class, its probability.

    The file is ``predictions.csv`` in the run's folder, one per process where there are several
    (``predictions-1.csv`` ...); a process writes the samples it has seen.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        file = folder / f"predictions{rank}.csv"
        indices = [i for loader in batch_indices for batch in loader for i in batch]
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(["index", "class", "probability"])
        for index, row in zip(indices, torch.cat(list(predictions)).float(), strict=True):
            writer.writerow([index, row.argmax().item(), f"{row.max().item():.6f}"])
        with whole_file(file) as stream:
            stream.write(table.getvalue().encode())
        rank_zero_info(f"predictions: {file}")
