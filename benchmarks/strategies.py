"""Which of Lightning's strategies trains with what: two processes beside one, on the CPU, by gloo.

    python -m benchmarks.strategies [--only TEXT] [--output FOLDER]

Each pair of strategy and feature is a training of a few steps in float64. Both processes together see the batches that
one process sees; what is compared is the weights at the end. "equal" is within 1e-9 of the largest weight. (A start
from an ANN is fitted on the first process's images, which are others where there are more processes: there, the
processes are compared with each other.) Numbers stand for how it ends where it does not train. The table goes to
benchmarks/results/strategies.md, and from there to docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.callbacks import AveragedWeights, BestCheckpoint, FoldExport, LastCheckpoint
from lightning_tspike.data import ImageDataModule

from .measuring import RESULTS, command, machine, table, write

__all__ = ["FEATURES", "STRATEGIES", "main"]

PROCESSES = 2
TOLERANCE = 1e-9
STEPS = 6
FROM_ANN = "start from an ANN"
BACKBONE = {
    "backbone": "tspike_fast_resnet_small", "num_classes": 4, "in_chans": 3, "timesteps": 2, "opt": "sgd", "lr": 0.05,
    "amplitude": "channel", "backbone_kwargs": {"widths": [8, 8], "layers": [2, 2], "norm_free_gain": 1.27},
}  # fmt: skip


class SharedSpikes(nn.Module):
    """Two layers of neurons whose spikes are added up, and so share one amplitude; no norm divides it out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 4]."""
        spikes = self.act1(3 * self.conv1(x))
        spikes = spikes + self.act2(3 * self.conv2(spikes))
        return self.fc(spikes.mean((2, 3)))


def _named(folder: Path, **options: Any) -> TernarySNNModule:
    return _Sharding(**BACKBONE, **options)


def _tied(folder: Path) -> TernarySNNModule:
    return _Sharding(SharedSpikes(), num_classes=4, timesteps=2, opt="sgd", lr=0.05, amplitude="layer")


def _from_ann(folder: Path) -> TernarySNNModule:
    torch.manual_seed(3)
    ann = timm.create_model(BACKBONE["backbone"], num_classes=4, in_chans=3, **BACKBONE["backbone_kwargs"])  # type: ignore[arg-type]
    torch.save(ann.state_dict(), folder / "ann.pth")
    return _named(folder, pretrained=str(folder / "ann.pth"), calibration_images=16)


FEATURES: dict[str, tuple[Callable[[Path], TernarySNNModule], Callable[[], list[L.Callback]]]] = {
    "memory=full": (_named, list),
    "memory=packed": (lambda folder: _named(folder, memory="packed"), list),
    "memory=lean": (lambda folder: _named(folder, memory="lean"), list),
    "tied amplitudes": (_tied, list),
    FROM_ANN: (_from_ann, list),
    "cost of operations": (lambda folder: _named(folder, synops_weight=1.0, synops_target=0.1), list),
    "averaged weights": (_named, lambda: [AveragedWeights(decay=0.5, norm_batches=0)]),
    "folded copies": (_named, lambda: [FoldExport(on_error="raise")]),
}
STRATEGIES: dict[str, Callable[[], Strategy | str]] = {
    "DDP": DDPStrategy,
    "DDP, static graph": lambda: DDPStrategy(static_graph=True),
    "DDP, unused parameters": lambda: DDPStrategy(find_unused_parameters=True),
    "FSDP2": lambda: ModelParallelStrategy(data_parallel_size=PROCESSES, tensor_parallel_size=1),
    "FSDP2, full checkpoints": lambda: ModelParallelStrategy(
        data_parallel_size=PROCESSES, tensor_parallel_size=1, save_distributed_checkpoint=False
    ),
    "FSDP": FSDPStrategy,
    "DeepSpeed, stage 2": lambda: "deepspeed_stage_2",
}


class _Sharding(TernarySNNModule):
    """As a user of FSDP2 writes it: Lightning leaves to the module what is sharded how."""

    def configure_model(self) -> None:
        mesh: Any = getattr(self, "device_mesh", None) if isinstance(self._strategy(), ModelParallelStrategy) else None
        if mesh is not None:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.network, mesh=mesh["data_parallel"])

    def _strategy(self) -> Any:
        return self.trainer.strategy if self._trainer is not None else None


def _images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        count = 8 * STEPS + 6
        x = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", x=x, y=np.arange(count) % 4)
    return folder


def _train(feature: str, strategy: Strategy | str, processes: int, images: Path, folder: Path) -> dict[str, Tensor]:
    """The weights that a feature's training ends with."""
    L.seed_everything(2, verbose=False)
    make, callbacks = FEATURES[feature]
    trainer = L.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=processes, strategy=strategy, max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[*callbacks(), BestCheckpoint(dirpath=folder), LastCheckpoint(folder)],
    )  # fmt: skip
    data = ImageDataModule(
        "npz", str(images), val_images=6, crop_padding=0, hflip=0.0, batch_size=8 // processes, num_workers=0
    )
    module = make(images).double()  # Lightning has no precision="64-true" for FSDP2
    trainer.fit(module, data)
    state = module.state_dict()
    if feature == "folded copies" and trainer.is_global_zero:
        zoo.load(folder / "last.folded")
    # put together from the parts of all processes, where each has one
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def _work(strategy: str, features: Sequence[str], images: Path, folder: Path) -> None:
    """In each of several processes: train all features by a strategy; the first one writes what came of it."""
    warnings.filterwarnings("ignore")
    for feature in features:
        place = folder / feature.replace(" ", "_")
        try:
            weights: Any = _train(feature, STRATEGIES[strategy](), PROCESSES, images, place)
            said = _disagreement(weights)
        except Exception as error:
            weights, said = {}, f"{type(error).__name__}: {' '.join(str(error).split())}"
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if rank == 0:
            place.mkdir(parents=True, exist_ok=True)
            torch.save({"weights": weights, "said": said}, place / "result.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _disagreement(weights: dict[str, Tensor]) -> str:
    """What is to be said where the processes do not have the same weights."""
    differing = []
    for name, value in weights.items():
        lowest, highest = value.clone(), value.clone()
        torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        if not torch.equal(lowest, highest):
            differing.append(name)
    return f"the processes have different weights in {', '.join(differing)}" if differing else ""


def _ends(strategy: str, features: Sequence[str], images: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Start the processes by torchrun; what each feature came to."""
    words = [strategy, json.dumps(list(features)), str(images), str(folder)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    result = subprocess.run(
        [*torchrun, "-m", "benchmarks.strategies", "--work", *words],
        capture_output=True, text=True, check=False, timeout=900, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    found = {}
    for feature in features:
        file = folder / feature.replace(" ", "_") / "result.pt"
        silent = {"weights": {}, "said": f"the processes ended with status {result.returncode}: {result.stderr[-500:]}"}
        found[feature] = torch.load(file, weights_only=True) if file.exists() else silent
        found[feature]["said"] = found[feature]["said"].replace(f"{file.parent}/", "")
    return found


def _cell(feature: str, found: dict[str, Any], expected: dict[str, Tensor]) -> str:
    if found["said"]:
        return str(found["said"])
    if feature == FROM_ANN:
        return "equal"
    largest = max(float(value.abs().max()) for value in expected.values())
    differs = max(float((found["weights"][name] - value).abs().max()) for name, value in expected.items()) / largest
    return "equal" if differs <= TOLERANCE else f"differs by {differs:.1e}"


def as_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a Markdown table, with long cells as notes below it."""
    notes: dict[str, int] = {}

    def short(text: str) -> str:
        return text if len(text) < 25 else f"({notes.setdefault(text, len(notes) + 1)})"

    shown = [{name: short(text) for name, text in row.items()} for row in rows]
    return table(shown) + "".join(f"\n{number}. {text}" for text, number in notes.items()) + "\n" * bool(notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all pairs and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies")
    parser.add_argument("--only", metavar="TEXT", default="", help="only strategies whose name has it")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.work:
        strategy, features, images, folder = options.work
        _work(strategy, json.loads(features), Path(images), Path(folder))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        images = _images(Path(scratch))
        alone = {name: _train(name, "auto", 1, images, Path(scratch, "one", name)) for name in FEATURES}
        for strategy in (name for name in STRATEGIES if options.only in name):
            found = _ends(strategy, list(FEATURES), images, Path(scratch, strategy))
            rows.append({"strategy": strategy, **{name: _cell(name, found[name], alone[name]) for name in FEATURES}})
            print(rows[-1], flush=True)
    text = f"# Strategies\n\n`{command('strategies', arguments)}`\n\n{as_table(rows)}"
    results = {"command": command("strategies", arguments), "machine": machine("cpu"), "rows": rows}
    write(options.output, "strategies", results, text)


if __name__ == "__main__":
    main()
