"""TrainingGuard: what is not finite, and layers of neurons that no longer work, are named; steps are left out whole."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_tspike import TernarySNNModule
from lightning_tspike.callbacks import GuardError, TrainingGuard

TINY = {"backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2, "opt": "sgd", "lr": 0.1}


class Broken(TernarySNNModule):
    """Its loss is NaN in these batches."""

    bad: tuple[int, ...] = ()

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if batch_idx in self.bad else loss


def module(kind: type[TernarySNNModule] = TernarySNNModule) -> Any:
    L.seed_everything(3, verbose=False)
    return kind(**TINY, backbone_kwargs={"layers": [1, 1], "widths": [4, 8]}, weight_decay=0.1)


def batches(*numbers: int, size: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(size * 8, 1, 8, 8, generator=generator), torch.arange(size * 8) % 10
    chosen = torch.cat([torch.arange(n * size, (n + 1) * size) for n in numbers])
    return DataLoader(TensorDataset(x[chosen], y[chosen]), batch_size=size)


def fit(folder: Path, trained: Any, data: Any, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1}  # fmt: skip
    trainer = L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)
    trainer.fit(trained, data)
    return trainer


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    broken = module(Broken)
    broken.bad = (2,)
    with pytest.raises(GuardError, match=r"step 2: the loss .* not finite: .* of network\.model\.conv1\.weight"):
        fit(tmp_path, broken, batches(0, 1, 2, 3), TrainingGuard())
    assert all(p.isfinite().all() for p in broken.parameters())


def spoil(trained: Any, name: str) -> None:
    """Its first channel becomes infinite."""
    layer: Any = dict(trained.network.model.named_modules())[name]
    layer.register_forward_hook(lambda _module, _args, output: output.index_fill(1, torch.tensor(0), math.inf))


def test_the_first_layer_is_named(tmp_path: Path) -> None:
    trained = module()
    spoil(trained, "fc")
    with pytest.raises(GuardError, match=r"step 0: .*: fc is the first layer whose output is not"):
        fit(tmp_path, trained, batches(0), TrainingGuard())


def test_what_the_loss_does_not_show(tmp_path: Path) -> None:
    """Infinite membrane potentials fire, NaN ones do not: loss and gradients are finite all the same."""
    trained = module()
    spoil(trained, "stages.1.0.bn1")
    with pytest.raises(GuardError, match=r"step 0: stages\.1\.0\.act1 is exploding \(mean .* (inf|nan)"):
        fit(tmp_path, trained, batches(0), TrainingGuard(on_layers="stop"))


def test_weights_that_are_lost_are_named(tmp_path: Path) -> None:
    trained = module()
    with torch.no_grad():
        trained.network.model.fc.bias[0] = math.nan
    with pytest.raises(GuardError, match=r"the weights network\.model\.fc\.bias were lost before"):
        fit(tmp_path, trained, batches(0), TrainingGuard())


@pytest.mark.parametrize(("accumulated", "seen", "bad"), [(1, (0, 3), (1, 2)), (2, (0, 1, 4, 5), (3,))])
def test_a_step_that_is_left_out_leaves_no_trace(
    tmp_path: Path, accumulated: int, seen: tuple[int, ...], bad: tuple[int, ...]
) -> None:
    """Weights, momentum and statistics are those of a run that never saw the batches of the step."""
    expected, skipping = module(), module(Broken)
    skipping.bad = bad
    without = fit(tmp_path, expected, batches(*seen), accumulate_grad_batches=accumulated)
    options = {"accumulate_grad_batches": accumulated, "logger": CSVLogger(tmp_path)}
    with pytest.warns(UserWarning, match="step 1: .*; the step is left out"):
        trainer = fit(tmp_path, skipping, batches(*range(max(seen) + 1)), TrainingGuard("skip"), **options)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, skipping.state_dict()[name]), name
    moments = [list(t.optimizers[0].state.values()) for t in (without, trainer)]
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(*moments, strict=True))
    (log,) = tmp_path.rglob("metrics.csv")
    with log.open() as stream:
        counts = [row["skipped_steps"] for row in csv.DictReader(stream) if row["skipped_steps"]]
    assert counts == [f"{n}.0" for n in range(1, 3 if accumulated == 1 else 2)]


def test_too_many_steps_left_out_end_the_run(tmp_path: Path) -> None:
    broken = module(Broken)
    broken.bad = (0, 2, 3, 4)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(GuardError, match="step 4: .* 3 steps in a row"):
        fit(tmp_path, broken, batches(0, 1, 2, 3, 4, 5), TrainingGuard("skip", most_skips=3))


def test_a_warning_and_no_more(tmp_path: Path) -> None:
    broken = module(Broken)
    broken.bad = (1,)
    with pytest.warns(UserWarning, match="step 1: the loss or its gradient is not finite") as found:
        fit(tmp_path, broken, batches(0, 1, 2, 3), TrainingGuard("warn"))
    assert sum("not finite" in str(warning.message) for warning in found) == 1  # of a network that stays lost


def set_threshold(trained: Any, name: str, value: float) -> None:
    trained.network.neurons()[name].threshold.fill_(value)


@pytest.mark.parametrize(
    ("threshold", "options", "text"),
    [
        (1e6, {}, r"stages\.0\.0\.act1 is silent \(0\.00% of its neurons fire\)"),
        (1e-7, {"membrane_limit": 1e12}, r"stages\.0\.0\.act1 is saturated \(\d+\.\d+% of its neurons fire\)"),
        (1e-7, {}, r"stages\.0\.0\.act1 is exploding \(mean membrane potential .* thresholds\)"),
    ],
)
def test_layers_that_no_longer_work_are_named(tmp_path: Path, threshold: float, options: Any, text: str) -> None:
    trained = module()
    set_threshold(trained, "stages.0.0.act1", threshold)
    with pytest.warns(UserWarning, match=f"step 0: .*{text}") as found:
        fit(tmp_path, trained, batches(0, 1, 2), TrainingGuard("warn", saturated_above=0.9, **options))
    # when it begins, and not again
    assert sum("stages.0.0.act1 is" in str(warning.message) for warning in found) == 1
    trained = module()
    set_threshold(trained, "stages.0.0.act1", threshold)
    with pytest.raises(GuardError, match=text):
        fit(tmp_path, trained, batches(0), TrainingGuard("warn", "stop", saturated_above=0.9, **options))


def test_a_network_that_works_is_left_alone(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with_guard, without = module(), module()
    fit(tmp_path, with_guard, batches(0, 1, 2), TrainingGuard("skip", "stop"))
    fit(tmp_path, without, batches(0, 1, 2))
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_guard.state_dict()[name]), name
    assert not [w for w in recwarn if "step" in str(w.message) and "finite" in str(w.message)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of stop, skip, warn; got 'ignore'"),
        ({"on_layers": "skip"}, "on_layers must be one of stop, warn; got 'skip'"),
        ({"most_skips": 0}, "most_skips must be at least 1 step, got 0"),
        ({"silent_below": 1.2}, "silent_below must be a firing rate below saturated_above, got 1.2 and 0.99"),
        ({"membrane_limit": 0.0}, "membrane_limit must be positive, got 0.0"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TrainingGuard(**options)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["loss", "layer"])
def test_all_processes_end(tmp_path: Path, trouble: str) -> None:
    """The second one's loss, or a layer that only the first one looks at: both end, and say why."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.callbacks.test_guard import *
        class Second(Broken):
            def training_step(self, batch, batch_idx):
                self.bad = (1,) if self.global_rank == 1 and {trouble!r} == "loss" else ()
                return super().training_step(batch, batch_idx)
        trained = module(Second)
        if {trouble!r} == "layer":
            set_threshold(trained, "stages.0.0.act1", 1e6)
        options = dict(devices=2, strategy="ddp", enable_model_summary=False)
        fit({str(tmp_path)!r}, trained, batches(0, 1, 2, 3, 4, 5), TrainingGuard("stop", "stop"), **options)
    """
    script = tmp_path / "run.py"
    script.write_text("\n".join(line.removeprefix(" " * 8) for line in code.splitlines()))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert result.returncode != 0
    text = "step 1: the loss or its gradient" if trouble == "loss" else "stages.0.0.act1 is silent"
    assert result.stderr.count(f"GuardError: {text}" if trouble == "loss" else text) == 2
