"""A network that is compiled for training on a CPU: the same gradients, and less is kept than in one that is not."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from benchmarks.measuring import kept_bytes
from lightning_tspike.memory.compiling import compile_for_training
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_keeps_less() -> None:
    torch.compiler.reset()
    network = create_network(NetworkConfig("tspike_resnet_small", num_classes=5, timesteps=4)).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    compiled = copy.deepcopy(network)
    compile_for_training(compiled.model, "cpu")
    expected, got = network(x), compiled(x)
    torch.testing.assert_close(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, p), q in zip(network.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-6, atol=1e-8 * p.grad.abs().max().item(), msg=name)
    kept = [kept_bytes(lambda n=n: n(x).sum(), "cpu") for n in (network, compiled)]
    assert kept[1] < kept[0]
