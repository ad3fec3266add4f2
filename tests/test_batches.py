"""Batches and outputs in the forms that users bring: read where the meaning is plain, else refused in a sentence."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tspike import TernarySNNModule
from lightning_tspike._batches import images_of, logits_of, targets_of
from lightning_tspike.analysis.evaluation import evaluate
from lightning_tspike.callbacks import EnergyMonitor, FiringRateMonitor, MembraneHistogram
from lightning_tspike.conversion import calibrate
from lightning_tspike.folding import fold
from lightning_tspike.network import ternarize

TINY = {
    "backbone": "tspike_resnet_small", "num_classes": 4, "in_chans": 1, "timesteps": 2,
    "backbone_kwargs": {"layers": [1], "widths": [4]},
}  # fmt: skip
IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
CLASSES = torch.tensor([0, 3, 1, 2, 2, 0])
ONE_HOT = torch.eye(4, dtype=torch.long)[CLASSES]


def trainer(folder: Path, **options: Any) -> L.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, **{"enable_checkpointing": False, "max_epochs": 1} | defaults | options)


def loader(*batches: Any) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    return _loss((IMAGES, CLASSES))


def _loss(batch: Any) -> dict[str, float]:
    torch.manual_seed(0)
    run = trainer(Path())
    return dict(run.test(TernarySNNModule(**TINY), loader(batch), verbose=False)[0])


@pytest.mark.parametrize(
    "batch",
    [
        [IMAGES, CLASSES],
        (IMAGES, CLASSES, torch.arange(6)),
        (IMAGES, CLASSES, ["a.png"] * 6),
        {"image": IMAGES, "label": CLASSES},
        {"pixel_values": IMAGES, "labels": CLASSES, "attention": torch.ones(6)},
        UserDict(x=IMAGES, y=CLASSES),
        (IMAGES.double(), CLASSES),
        (IMAGES, CLASSES.to(torch.uint8)),
        (IMAGES, CLASSES.int()),
        (IMAGES, CLASSES.unsqueeze(1)),
        (IMAGES, ONE_HOT),
        (IMAGES, ONE_HOT.bool()),
        (IMAGES, ONE_HOT.float()),
        (IMAGES, ONE_HOT.double()),
    ],
    ids=lambda batch: None,
)
def test_the_same_batch_in_many_forms(batch: Any, expected: dict[str, float]) -> None:
    assert _loss(batch) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["ce", "tet"])
@pytest.mark.parametrize(
    "targets", [ONE_HOT, ONE_HOT.float() * 0.6 + 0.1, CLASSES], ids=["one-hot", "mixed", "classes"]
)
def test_dicts_with_callbacks_and_every_stage(tmp_path: Path, targets: Tensor, loss: Any) -> None:
    module = TernarySNNModule(**TINY, loss=loss)
    watching = [EnergyMonitor(), FiringRateMonitor(every_n_steps=1), MembraneHistogram(every_n_steps=1)]
    run = trainer(tmp_path, callbacks=watching, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    data = loader({"image": IMAGES.double(), "label": targets})
    run.fit(module, data, data)
    assert run.callback_metrics.keys() >= {"train/loss", "train/acc1", "val/loss", "val/acc1"}
    assert "energy/synops" in (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    accuracy = run.test(module, data, verbose=False)[0]["test/acc1"]
    probabilities = run.predict(module, loader({"image": IMAGES, "path": "a.png"}, IMAGES))
    assert torch.equal(*probabilities)
    assert evaluate(module.network, data).accuracy == pytest.approx(accuracy)


def test_a_calibrated_start_from_dicts(tmp_path: Path) -> None:
    import timm

    weights = tmp_path / "ann.pt"
    ann = timm.create_model("tspike_resnet_small", num_classes=4, in_chans=1, layers=[1], widths=[4])
    torch.save(ann.state_dict(), weights)
    starts = []
    for batch in ((IMAGES, CLASSES), {"image": IMAGES.double(), "label": CLASSES}):
        module = TernarySNNModule(**TINY, pretrained=str(weights), calibration_images=6, lr=0, weight_decay=0)
        trainer(tmp_path).fit(module, loader(batch))
        starts.append({name: p.detach() for name, p in module.named_parameters()})
    torch.testing.assert_close(*starts, rtol=0, atol=0)
    with pytest.raises(ValueError, match="uint8"):
        calibrate(TernarySNNModule(**TINY).network, ann, torch.zeros(4, 1, 8, 8, dtype=torch.uint8))


MULTI = ONE_HOT.clone().index_fill_(1, torch.tensor([1]), 1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES, MULTI.float()), r"row 0 of the targets sums to 2 .*multi-label.*override\s+training_step"),
        ((IMAGES, MULTI), "row 0 of the targets sums to 2 .*multi-label"),
        ((IMAGES, ONE_HOT.float() * 0.5), "sums to 0.5"),
        ((IMAGES, torch.zeros(6, 4)), "sums to 0 with 0 values above 0"),
        ((IMAGES, torch.tensor([[2.0, -1.0, 0.0, 0.0]] * 6)), "sums to 1 with 1 values above 0"),
        ((IMAGES, torch.full((6, 4), float("nan"))), "sums to nan"),
        ((IMAGES, CLASSES.float()), r"float32 of shape \(6,\) .*expected classes \[6\] of an integer type"),
        ((IMAGES, torch.zeros(6, 7)), r"shape \(6, 7\) .*\[6, 4\], where 4 is num_classes"),
        ((IMAGES, CLASSES[:5]), r"shape \(5,\) for 6 images"),
        ((IMAGES, IMAGES, CLASSES), r"targets are float32 of shape \(6, 1, 8, 8\)"),
        ((IMAGES, ["cat"] * 6), "targets of a batch must be a tensor, got a list of 6"),
        ((IMAGES, CLASSES, CLASSES, 0.3), "no targets that are told from the rest, got 4 parts"),
        (IMAGES, r"no targets .*got float32 of shape \(6, 1, 8, 8\)"),
        ({"image": IMAGES}, "no targets .* keys 'image'"),
        (
            {"picture": IMAGES, "label": CLASSES},
            "none of the keys for images; .* keys 'picture', 'label'",
        ),
        ({"image": IMAGES, "x": IMAGES, "label": CLASSES}, "several of these keys: image, x"),
        ({"image": IMAGES, "label": CLASSES, "y": CLASSES}, "several of these keys: label, y"),
        ((IMAGES.mul(40).to(torch.uint8), CLASSES), "uint8 .*scale pixels by .*scale=True"),
        ((IMAGES.mul(40).long(), CLASSES), "int64 .*counts of events"),
        (([IMAGES], CLASSES), "images of a batch must be a tensor, got a list of 1"),
        ((IMAGES * 1e300, CLASSES), "infinite"),
        ((IMAGES.double() * 1e300, CLASSES), r"infinite values, in samples \[0, 1, 2, 3, 4, 5\]"),
        (SimpleNamespace(x=IMAGES), "got a SimpleNamespace"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_plain_is_refused(tmp_path: Path, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(TernarySNNModule(**TINY), loader(batch))


def test_a_subclass_may_train_on_several_labels(tmp_path: Path) -> None:
    """As the refusal says."""

    class MultiLabel(TernarySNNModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    run = trainer(tmp_path)
    run.fit(MultiLabel(**TINY), loader((IMAGES, MULTI.float())))
    assert run.global_step == 1


def test_half_precision_probabilities_sum_to_one_closely_enough() -> None:
    mixed = torch.rand(64, 1000).softmax(1)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(targets_of((torch.zeros(64), mixed.to(dtype)), 1000), mixed.to(dtype))


def test_images_keep_or_change_their_type() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert images_of(torch.ones(2, 3, dtype=dtype)).dtype == dtype
        assert images_of(torch.ones(2, 3, dtype=dtype), torch.float32).dtype == torch.float32
    assert torch.equal(images_of(torch.tensor([[True, False]])), torch.tensor([[1.0, 0.0]]))


class _Aux(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


@dataclass
class _Output:
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class _Wrapped(nn.Module):
    """A network whose output is wrapped into something."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.fc, self.wrap = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Linear(8, 4), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(self.act(self.conv(x)).mean((2, 3))), x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits, x: {"logits": logits, "features": x},
        lambda logits, x: {"out": logits, "aux": logits * 2},
        lambda logits, x: _Aux(logits, logits * 2),
        lambda logits, x: _Output(logits, (x,)),
        lambda logits, x: (logits, x),
        lambda logits, x: [logits],
    ],
    ids=["dict", "torchvision's dict", "named tuple", "object", "tuple", "list"],
)
def test_logits_in_a_wrapping(wrap: Any) -> None:
    plain = ternarize(_Wrapped(lambda logits, x: logits), 2, input_size=(1, 8, 8)).double()
    wrapped = ternarize(_Wrapped(wrap), 2, input_size=(1, 8, 8)).double()
    x = IMAGES.double()
    assert torch.equal(plain(x), wrapped(x))
    assert torch.equal(plain(x, per_step=True), wrapped(x, per_step=True))
    with torch.no_grad():
        wrapped.neurons()["act"].raw_amplitude.fill_(0.7)
    folded, report = fold(wrapped)
    assert all(neuron.folded for neuron in report.neurons)
    torch.testing.assert_close(folded(x), wrapped(x))


@pytest.mark.parametrize(
    "output",
    [(torch.zeros(2, 4), torch.zeros(2, 4)), {"features": torch.zeros(2, 4)}, [torch.zeros(2, 3, 4, 4)], None, "text"],
)
def test_outputs_without_plain_logits(output: Any) -> None:
    with pytest.raises(ValueError, match=r"must return logits \[N, K\].*it returned a "):
        logits_of(output)
