"""Operations and energy in the logs and the report."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger

from lightning_tspike import TernarySNNModule
from lightning_tspike.analysis import write_report
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.analysis.run_logs import read_logs
from lightning_tspike.callbacks import REPORT_SECTIONS, EnergyMonitor, FiringRateMonitor
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from tests.callbacks.short_fit import TINY, csv_rows, fit, loggers


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
