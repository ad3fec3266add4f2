"""What reaches Weights & Biases, read back from the run's own file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_tspike.callbacks import (
    AmplitudeLogger,
    EnergyMonitor,
    FiringRateMonitor,
    FoldExport,
    MembraneHistogram,
)
from tests.callbacks.short_fit import Recorder, fit


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from the run's own file, as `wandb sync` would."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    recorder = Recorder()
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
