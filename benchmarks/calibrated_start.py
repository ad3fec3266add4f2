"""How far does a calibrated start get on Fashion-MNIST, without training and after one epoch?

    python -m benchmarks.calibrated_start ROOT

ROOT holds the files as torchvision lays them out. Trains the ReLU network `tspike_resnet_small` for four epochs,
converts it to spiking networks of several kinds and numbers of time steps, and trains the one with T = 4 for one epoch
from the calibrated start and from scratch, at three learning rates. Test accuracies, and the share of each activation's
variance that the spikes miss, go to benchmarks/results/calibrated_start.json.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tspike import TernarySNNModule
from lightning_tspike.analysis.evaluation import evaluate
from lightning_tspike.conversion import calibrate
from lightning_tspike.data import ImageDataModule
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig

RESULTS = Path(__file__).parent / "results" / "calibrated_start.json"
BACKBONE = "tspike_resnet_small"
NEURONS: dict[str, dict[str, Any]] = {
    "ternary LIF": {"neuron": "ternary_lif"},
    "ternary IF, soft reset": {"neuron": "ternary_if", "reset": "soft"},
    "binary LIF": {"neuron": "binary_lif"},
}


class _Ann(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model(BACKBONE, num_classes=10, in_chans=1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main(root: str) -> None:
    """Train, convert, train on, and write the results."""
    L.seed_everything(1)
    data = ImageDataModule("fashion_mnist", root=root)
    ann = _Ann()
    _fit(ann, data, epochs=4)
    model = ann.model.eval()
    result: dict[str, Any] = {
        "machine": {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()},
        "ANN, four epochs": _accuracy(model, data),
        "converted, no training": [],
        "one epoch, T = 4": [],
    }
    print(f"ANN: {result['ANN, four epochs']:.4f}", flush=True)
    images = torch.cat([x for (x, _), _ in zip(data.train_dataloader(), range(4), strict=False)])
    for kind, options in NEURONS.items():
        for timesteps in (1, 2, 4, 8):
            network = create_network(NetworkConfig(BACKBONE, 10, 1, timesteps, **options))
            start = time.perf_counter()
            missed = calibrate(network, model, images)
            row = {
                "neuron": kind,
                "T": timesteps,
                "seconds": round(time.perf_counter() - start, 1),
                "accuracy": evaluate(network, data.test_dataloader()).accuracy,
                "missed": {name: round(share, 3) for name, share in missed.items()},
            }
            result["converted, no training"].append(row)
            print(row, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/ann.pt"
        torch.save(model.state_dict(), weights)
        for start_from, lr in itertools.product(("ANN", "scratch"), (0.003, 0.01, 0.1)):
            L.seed_everything(1)
            module = TernarySNNModule(
                BACKBONE, 10, 4, 1, lr=lr, weight_decay=5e-4, sched="none",
                pretrained=weights if start_from == "ANN" else False,
            )  # fmt: skip
            _fit(module, data, epochs=1)
            accuracy = evaluate(module.network, data.test_dataloader()).accuracy
            result["one epoch, T = 4"].append({"from": start_from, "learning rate": lr, "accuracy": accuracy})
            print(result["one epoch, T = 4"][-1], flush=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def _fit(module: L.LightningModule, data: ImageDataModule, epochs: int) -> None:
    trainer = L.Trainer(
        max_epochs=epochs, limit_val_batches=0, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(module, data)
    data.setup("test")


@torch.no_grad()
def _accuracy(model: nn.Module, data: ImageDataModule) -> float:
    right = torch.cat([model(x).argmax(-1) == y for x, y in data.test_dataloader()])
    return right.double().mean().item()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.calibrated_start ROOT")
    main(sys.argv[1])
