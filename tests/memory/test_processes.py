"""Norms whose statistics are of all processes, in blocks that are computed again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce

from lightning_tspike.network import ternarize


class _SyncNorm(nn.Module):
    """A stand-in for SyncBatchNorm, which torch has for GPUs alone: takes off the mean over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1, 4, 1, 1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = all_reduce(x.mean((0, 2, 3), keepdim=True)) / distributed.get_world_size()
        torch.add(self.running_mean, mean.detach(), out=self.running_mean)
        return x - mean


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(3, 4, 3), _SyncNorm(), nn.ReLU(), nn.Conv2d(4, 4, 3), _SyncNorm(), nn.ReLU()
        )
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(x).mean((2, 3)))


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)[rank]
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    base = ternarize(_Network(), 2, input_size=(3, 8, 8), freeze_cancelled=False).double()
    results = {}
    for memory in ("full", "lean"):
        network = copy.deepcopy(base)
        network.memory = memory
        network(x).square().sum().backward()
        results[memory] = [p.grad for p in network.parameters()], list(network.buffers())
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_statistics_of_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert any(buffer.abs().max() > 0 for buffer in results["full"][1])
        torch.testing.assert_close(results["lean"], results["full"], rtol=1e-12, atol=1e-12)
