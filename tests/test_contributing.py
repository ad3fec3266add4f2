"""The recipes of docs/contributing.md, followed in modules of their own: one file, one line in a table."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from lightning import Trainer
from torch import nn

import lightning_tspike as lt
from lightning_tspike.data.image_sources import SOURCES
from lightning_tspike.graph import rules
from lightning_tspike.neurons import NEURONS
from lightning_tspike.store.folder import read_folder, write_folder

NEURON = '''
    """Ternary neurons that look at the present alone."""

    from lightning_tspike import functional
    from lightning_tspike.neurons import TernaryLIF


    class Forgetful(TernaryLIF):
        """Ternary neurons without any memory: tau = 0."""

        def __init__(self, timesteps, *, channels=None, **options):
            super().__init__(timesteps, channels=channels, **{**options, "decay": 0.0})
'''

SOURCE = '''
    """Stripes: upright or level."""

    import numpy as np
    from PIL import Image

    from lightning_tspike.data.image_sources import ImageSource, Look


    class Striped:
        classes = ("upright", "level")

        def __init__(self, length):
            self.length = length

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            picture = np.zeros((8, 8), dtype=np.uint8)
            picture[index // 2 % 2 :: 2] = 255
            return Image.fromarray(picture if index % 2 else picture.T), index % 2

        def filename(self, index):
            return f"stripes {index}"


    class Stripes(ImageSource):
        """Made up as they are read."""

        def __init__(self, dataset, root):
            super().__init__(dataset, root)
            self.look = Look((1, 8, 8), (0.5,), (0.5,), crop_padding=0, hflip=0.0)

        def open(self, split):
            return Striped(96 if split == "train" else 32)
'''

RULE = '''
    """A quarter turn of the image."""

    import torch

    from lightning_tspike.graph.rules import Move


    class Turn(Move):
        """Elements only change places."""

        covers, gauges, spikes = "quarter turn", "every element takes its gauge along", "yes"
        modules, functions, methods = (), frozenset({torch.rot90}), frozenset({"rot90"})
'''


class Reverse(nn.Module):
    """Columns in the opposite order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(3, torch.arange(x.shape[3] - 1, -1, -1))


class Turned(nn.Module):
    """Spikes are moved between two convolutions."""

    def __init__(self, move: nn.Module | None) -> None:
        super().__init__()
        self.move = move
        self.conv1, self.act1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.conv1(x))
        x = torch.rot90(x, 1, (2, 3)) if self.move is None else self.move(x)
        return self.head(self.act2(self.conv2(x)).flatten(1))


def module(name: str, text: str) -> types.ModuleType:
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(dedent(text), f"{name}.py", "exec"), made.__dict__)
    return made


def test_a_neuron(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(NEURONS, "forgetful", module("forgetful", NEURON).Forgetful)
    config = lt.NetworkConfig("tspike_resnet_small", num_classes=3, in_chans=1, timesteps=2, neuron="forgetful")
    network = lt.models.create_network(config).eval()
    frames = torch.randn(4, 2, 1, 8, 8)
    steps = network(frames, per_step=True)
    assert torch.equal(steps, network(frames.flip(1), per_step=True).flip(0))  # no step knows of another
    lif = lt.models.create_network(lt.NetworkConfig("tspike_resnet_small", num_classes=3, in_chans=1, timesteps=2))
    lif.load_state_dict(network.state_dict())
    assert not torch.equal(steps, lif.eval()(frames, per_step=True))
    folded, report = lt.fold(network, frames)
    assert not report.kept
    write_folder(tmp_path / "net", folded)
    torch.testing.assert_close(read_folder(tmp_path / "net")[0](frames), network(frames))


def test_a_data_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SOURCES, "stripes", module("stripes", SOURCE).Stripes)
    data = lt.data.ImageDataModule("stripes", str(tmp_path), batch_size=16, val_images=16)
    net = lt.TernarySNNModule("tspike_resnet_small", num_classes=2, in_chans=1, timesteps=2, lr=0.05)
    trainer = Trainer(max_epochs=10, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(net, data)
    assert trainer.test(net, data, verbose=False)[0]["test/acc1"] > 0.9
    assert data.preprocessing["input_size"] == [1, 8, 8]


@pytest.mark.parametrize("as_module", [False, True])
def test_an_operation_rule(monkeypatch: pytest.MonkeyPatch, as_module: bool) -> None:
    """Of a function, or of a module whose inside nothing is known of."""
    network = lt.ternarize(Turned(Reverse() if as_module else None), 2, input_size=(1, 6, 6), amplitude="channel")
    network.double()
    for neuron in network.neurons().values():
        torch.nn.init.uniform_(neuron.raw_amplitude, 0.5, 1.5)
    images = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    assert lt.fold(network, images)[1].kept == ["act1"]  # the turn is not known: gauge 1 on both sides
    rule = module("turn", RULE).Turn()
    monkeypatch.setattr(rule, "modules", (Reverse,), raising=False)
    rules.RULES.append(rule)
    try:
        folded, report = lt.fold(network, images)
    finally:
        rules.RULES.remove(rule)
    assert report.kept == []
    torch.testing.assert_close(folded(images), network.eval()(images))
