"""Several processes (DDP by gloo, started by torchrun) train as one does that sees the batches of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

STEPS = 20
TRAIN = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    import lightning as L
    import torch
    from torch import distributed, nn
    from torch.distributed.nn.functional import all_reduce
    from lightning_tspike import TernarySNNModule
    from lightning_tspike.data import ImageDataModule

    class NormOfAll(nn.BatchNorm2d):
        # the arithmetic of SyncBatchNorm, which torch has for GPUs alone
        def forward(self, x):
            if not self.training or not distributed.is_initialized():
                return super().forward(x)
            n = x.numel() // x.shape[1] * distributed.get_world_size()
            mean = all_reduce(x.sum((0, 2, 3))) / n
            centred = x - mean[:, None, None]
            variance = all_reduce(centred.square().sum((0, 2, 3))) / n
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
                self.num_batches_tracked += 1
            scaled = centred * (self.weight / (variance + self.eps).sqrt())[:, None, None]
            return scaled + self.bias[:, None, None]

    class Record(L.Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            self.losses.append(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean").item())

    images, out, processes, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    L.seed_everything(1)
    module = TernarySNNModule(
        "tspike_resnet_small", num_classes=4, in_chans=3, timesteps=2, opt="sgd", lr=0.05, amplitude="channel",
        backbone_kwargs={"layers": [1, 1], "widths": [4, 8]},
    )
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        norm.__class__ = NormOfAll
    data = ImageDataModule(
        "npz", images, val_images=7, crop_padding=0, hflip=0.0, batch_size=16 // processes, num_workers=0
    )
    record = Record()
    trainer = L.Trainer(
        default_root_dir=out, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto",
        precision=precision, max_epochs=2, logger=False, enable_checkpointing=False, callbacks=[record],
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(module, data, verbose=False)[0]
    if trainer.is_global_zero:
        Path(out).mkdir(exist_ok=True)
        torch.save(module.state_dict(), Path(out) / "weights.pt")
        (Path(out) / "said.json").write_text(json.dumps({"losses": record.losses, **metrics, **tested}))
    if processes > 1:
        torch.distributed.destroy_process_group()
""")


def train(folder: Path, processes: int, precision: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights at the end, and what was logged."""
    script, out = folder / "train.py", folder / f"{processes}_{precision}"
    script.write_text(TRAIN)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [sys.executable, *torchrun, str(script), str(folder), str(out), str(processes), precision]
    result = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    return torch.load(out / "weights.pt", weights_only=True), json.loads((out / "said.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance", "numbers"), [("64-true", 1e-9, (2, 4)), ("32-true", 1e-4, (2,))])
def test_as_one_process(tmp_path: Path, precision: str, tolerance: float, numbers: tuple[int, ...]) -> None:
    """Loss at every step, weights, statistics of norms, and metrics (of 7 and of 31 images: shares are not equal)."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8 * STEPS + 7), ("test", 31)):
        x = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.arange(count) % 4)
    weights, said = train(tmp_path, 1, precision)
    assert len(said["losses"]) == STEPS
    for processes in numbers:
        their_weights, they_said = train(tmp_path, processes, precision)
        torch.testing.assert_close(their_weights, weights, rtol=tolerance, atol=tolerance)
        assert they_said["losses"] == pytest.approx(said["losses"], rel=tolerance)
        for name in ("train/acc1", "val/acc1", "val/loss", "test/acc1", "test/loss"):
            assert they_said[name] == pytest.approx(said[name], rel=max(tolerance, 1e-6)), name


@pytest.mark.usefixtures("one_process_group")
def test_fit_ends_the_communication(tspike: Callable[..., Any]) -> None:
    """Threads of it that run until the interpreter's end can abort a process that has done its work."""
    words = "--model.timesteps=1 --trainer.max_epochs=1 --trainer.limit_test_batches=0 --trainer.accelerator=cpu"
    result = tspike("fit", "--config=digits", *words.split(), "--trainer.devices=1", "--trainer.strategy=ddp")
    assert result.status is None, result.stderr
    assert "MASTER_PORT" in os.environ, "there was no communication to end"
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_nodes(tmp_path: Path) -> None:
    """``tspike fit`` by torchrun on two machines, here two agents on one."""
    words = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:29631", str(Path(sys.executable).with_name("tspike")), "fit", "--config", "digits",
        "--model.timesteps=1", "--model.backbone_kwargs={layers: [1, 1], widths: [4, 8]}", "--trainer.accelerator=cpu",
        "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    nodes = [
        subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        said = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in "".join(said)
    assert (tmp_path / "runs/digits/version_0/checkpoints/best.folded/config.json").exists()
    assert sum("test accuracy: unfolded" in text for text in said) == 1
