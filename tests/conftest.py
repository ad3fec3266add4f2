"""Fixtures shared by the tests: real data and golden numbers where they are, networks that differ from a fresh one."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before torch is imported: processes side by side must not fight over the cores, each of them and its children has one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Before triton is imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from torch import nn

from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks/ and what tests share
pytest.register_assert_rewrite("tests.folding.check_fold")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts from the same random numbers; a seed that an earlier test gave Lightning is forgotten."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)


@pytest.fixture
def one_process_group() -> Iterator[None]:
    """For a distributed strategy with this process alone; the group and what Lightning tells children of it go."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a file or folder in ../shared; the test is skipped where it is missing."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs {SHARED / name}, which is not on this machine")
        return SHARED / name

    return path


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    return found


def _unpack(archive: Path, folder: Path, pattern: str, limit: int) -> None:
    """The first ``limit`` files of each folder in a zip file whose names match."""
    taken: dict[str, int] = {}
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            parent = name.rpartition("/")[0]
            if re.search(pattern, name) and taken.get(parent, 0) < limit:
                taken[parent] = taken.get(parent, 0) + 1
                file.extract(name, folder)


@pytest.fixture
def tiny_imagenet(shared: Callable[[str], Path], tmp_path: Path) -> Path:
    """Folder of four images of each class, for training and for validation."""
    _unpack(shared("data/tiny_imagenet_20.zip"), tmp_path, r"\.JPEG$", 4)
    return tmp_path / "tiny_imagenet_20"


@pytest.fixture
def nmnist(shared: Callable[[str], Path], tmp_path: Path) -> Path:
    """Root of five recordings of each digit, for training and for testing."""
    _unpack(shared("data/nmnist_small.zip"), tmp_path, r"\.bin$", 5)
    return tmp_path


class Result(NamedTuple):
    """What a command has printed, and how it ended (None: well; a text: the complaint)."""

    stdout: str
    stderr: str
    status: int | str | None


@pytest.fixture
def tspike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """The command ``tspike`` with these words, by default in the test's folder; in this process, to save its start."""

    def run(*words: str, cwd: Path = tmp_path) -> Result:
        from lightning_tspike.cli.main import main

        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["tspike", *words])
        capsys.readouterr()
        status = None
        try:
            main()
        except SystemExit as end:
            status = end.code
        except Exception:  # as Python ends a process
            status = traceback.format_exc()
        out, err = capsys.readouterr()
        return Result(out, err + (status if isinstance(status, str) else ""), status)

    return run


def randomized(network: SpikingNetwork) -> SpikingNetwork:
    """The network in float64 and eval mode with random amplitudes in [0.5, 1.5] and random BN statistics.

    Weights get unit gain, so that spikes reach the logits in networks without BN too.
    """
    network = network.double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
        if isinstance(gain := getattr(module, "gain", None), nn.Parameter):  # of weights that are standardised
            nn.init.constant_(gain, 2**0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, std=0.2, generator=generator)
    for neuron in network.neurons().values():
        if neuron.raw_amplitude is not None:
            nn.init.uniform_(neuron.raw_amplitude, 0.5, 1.5, generator=generator)
    return network


@pytest.fixture(scope="session")
def randomize() -> Callable[[SpikingNetwork], SpikingNetwork]:
    """Give a network random numbers that differ from a fresh one's, as :func:`randomized` says."""
    return randomized


@pytest.fixture(scope="session")
def lively() -> Callable[..., SpikingNetwork]:
    """Build a randomized network from a backbone's name; no amplitude is frozen unless asked for."""

    def build(backbone: str, **config: object) -> SpikingNetwork:
        return randomized(create_network(NetworkConfig(backbone, **{"freeze_cancelled": False, **config})))

    return build
