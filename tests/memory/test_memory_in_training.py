"""A module that trains with less memory, or compiled: the same weights, and options that go together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_tspike import TernarySNNModule
from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.callbacks import FiringRateMonitor


def _data(count: int = 44, dtype: torch.dtype = torch.float32) -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(count, 1, 8, 8, dtype=dtype), torch.randint(10, (count,))), 16)


def _trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=options.pop("logger", False), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def test_training_is_the_same(tmp_path: Path) -> None:
    """Weights after some steps, and what a callback counts on the way."""
    weights, rates = [], []
    for memory in ("full", "lean"):
        L.seed_everything(1, verbose=False)
        module = TernarySNNModule("tspike_resnet_small", 10, 2, in_chans=1, memory=memory, lr=0.01).double()
        logger = L.pytorch.loggers.CSVLogger(tmp_path / memory)
        trainer = _trainer(tmp_path, max_epochs=2, logger=logger, callbacks=[FiringRateMonitor(every_n_steps=1)])
        trainer.fit(module, _data(dtype=torch.float64))
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        rates.append((Path(logger.log_dir) / "metrics.csv").read_text())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=1e-12)
    header, *lines = rates[0].splitlines()
    assert "firing_rate" in header
    assert rates[1].splitlines()[0] == header
    for ours, theirs in zip(lines, rates[1].splitlines()[1:], strict=True):
        assert [float(v) for v in ours.split(",") if v] == pytest.approx([float(v) for v in theirs.split(",") if v])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "small"}, "memory must be one of .*'small'"),
        ({"memory": "lean", "compile": True}, "memory at 'full'"),
        ({"memory": "lean", "tmpr_weight": 0.1}, "memory='packed'"),
        ({"compile": True, "tmpr_weight": 0.1}, "compile=False"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernarySNNModule("tspike_resnet_small", 10, 2, **options)


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    """Fit and validate with a smaller last batch: no graph breaks, and after the first epoch nothing is compiled."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs: list[int] = []

    class Count(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            graphs.append(counters["stats"]["unique_graphs"])

    small = {"layers": [1], "widths": [4]}
    module = TernarySNNModule("tspike_vgg11", 10, 2, in_chans=1, compile=True, sched="none", backbone_kwargs=small)
    trainer = _trainer(tmp_path, max_epochs=3, callbacks=[Count()])
    trainer.fit(module, _data(), _data())
    assert not counters["graph_break"]
    assert graphs[0] > 0, "nothing was compiled"
    assert graphs[1:] == graphs[:1] * 2
    # an uncompiled copy computes the same, and a compiled network can still be looked into
    x = torch.randn(16, 1, 8, 8)
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(x), copy.deepcopy(module)(x))
    with firing_rates(module.network) as rates, torch.no_grad():
        module(x)
    assert set(rates) == set(module.network.neurons())


def test_compile_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    module = TernarySNNModule("tspike_resnet_small", 10, 1, in_chans=1, compile=True, sched="none")
    with pytest.warns(UserWarning, match="no compiler"):
        _trainer(tmp_path, max_steps=1).fit(module, _data(16))
