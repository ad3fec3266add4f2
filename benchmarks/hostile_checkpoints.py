"""Checkpoints that are broken or were made to do harm, a source of cases for ``benchmarks.hostile``."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tspike import zoo
from lightning_tspike.folding import FoldError
from lightning_tspike.store.checkpoint import CheckpointError
from lightning_tspike.store.folder import read_folder

from .hostile import Harm, Source
from .hostile_folders import IMAGES, ORIGINAL, published


def made(scratch: Path) -> Path:
    """A sound checkpoint, of a network that is folded already."""
    network, manifest = read_folder(ORIGINAL)
    assert network.config is not None
    assert manifest.preprocessing is not None
    saved = {
        "state_dict": {f"network.{name}": tensor for name, tensor in network.state_dict().items()},
        "hyper_parameters": {**asdict(network.config), "amplitude": "fixed", "lr": 0.1},
        "preprocessing": manifest.preprocessing.to_dict(),
        "label_names": list(manifest.label_names or ()),
    }
    torch.save(saved, scratch / "a.ckpt")
    return scratch / "a.ckpt"


def flip(file: Path, rng: random.Random) -> None:
    """Change a byte."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, rng: random.Random) -> None:
    """Cut the file off."""
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def call(file: Path, rng: random.Random) -> None:
    """A pickle that calls something, in either format."""
    kind = rng.choice(["raw", "harm", "bytearray", "tensor", "counter"])
    if kind == "raw":
        file.write_bytes(pickle.dumps(Harm(), protocol=rng.choice([2, 4])))
        return
    called = {
        "harm": b"c__builtin__\nexec\n(X%btR." % _text("import os; os.environ['TSPIKE_HARMED'] = '1'"),
        "bytearray": b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",  # two gigabytes
        "tensor": b"ctorch\nFloatTensor\n(J\xff\xff\xff\x7ftR.",
        "counter": b"cos\nsystem\n(X%btR." % _text("touch /tmp/harmed"),
    }[kind]
    archived(file, {"data.pkl": b"\x80\x02" + called})


def zipped(file: Path, rng: random.Random) -> None:
    """An archive that unfolds into more than it is."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.rpartition("/")[2]: archive.read(entry) for entry in archive.infolist()}
    if rng.random() < 0.5:
        entries["data.pkl"] = b"\x80\x02" + b"]" * 10 ** rng.choice([7, 8])
    archived(file, entries, zipfile.ZIP_DEFLATED)


def tensors(file: Path, rng: random.Random) -> None:
    """Spoil a tensor."""
    change: Callable[[Tensor], Any] = rng.choice([
        lambda x: torch.full_like(x, float("nan")), lambda x: torch.full_like(x, float("-inf")),
        lambda x: torch.zeros(1).expand(10**6, 10**6), lambda x: torch.zeros(1).expand(2**62),
        lambda x: torch.zeros(*x.shape, 2), lambda x: x.flatten()[:0], lambda x: x.to_sparse(), lambda x: x.to("meta"),
        lambda x: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2**40,)),
        lambda x: torch.quantize_per_tensor(torch.ones(x.shape), 0.1, 0, torch.qint8), lambda x: None,
        lambda x: [x], lambda x: x.to(torch.complex64),
    ])  # fmt: skip
    name = rng.choice(["conv1.weight", "bn1.running_var", "fc.weight", "stages.0.0.conv1.weight"])
    if rng.random() < 0.1:  # elsewhere these would be weights like any other
        name, change = "bn1.running_var", torch.neg
    edit(file, lambda saved: _spoil(saved["state_dict"], f"network.model.{name}", change))


def hyper_parameters(file: Path, rng: random.Random) -> None:
    """Ask for another network."""
    big = 10 ** rng.choice([4, 6, 9, 12, 30])
    laughs: Any = ["x"]
    for _ in range(40):
        laughs = [laughs] * 10
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    key, value = rng.choice([
        ("num_classes", rng.choice([25_000_000, big, -1, 0, 1.5, True, None])), ("in_chans", rng.choice([big, 0, "3"])),
        ("timesteps", rng.choice([65536, 1000, 0, -1, "4", 10**12])), ("neuron", "os.system"), ("decay", "x"),
        ("backbone", rng.choice(["hf-hub:a/b", "/etc/passwd", "os.system", "", 5, None, "resnet152", "swin_tiny"])),
        ("backbone_kwargs", rng.choice([
            laughs, {"layers": laughs}, itself, {"pretrained": True}, {"layers": [big, 1, 1]}, {"widths": [big, 1, 1]},
            {"img_size": big}, {"checkpoint_path": "/etc/passwd"}, {"stem": "__import__('os')"}, {1: 2}, "x",
        ])),
    ])  # fmt: skip
    edit(file, lambda saved: saved["hyper_parameters"].__setitem__(key, value))


def facts(file: Path, rng: random.Random) -> None:
    """Say odd things of the input and the classes."""
    laughs: Any = ["x"]
    for _ in range(40):
        laughs = [laughs] * 10
    key, value = rng.choice([
        ("preprocessing", rng.choice([
            laughs, 5, "x", {"input_size": laughs}, {"input_size": [1, 65536, 65536]}, {"std": [0.0]}, {1: 2},
            {"mean": [1, 2], "input_size": [1, 8, 8]}, {"std": [float("nan")]}, {"interpolation": laughs},
            {"crop_pct": 1e-30}, {"frames": {}},
        ])),
        ("label_names", rng.choice([laughs, 5, ["a"], [1] * 10, ["x" * 10**6] * 10])),
    ])  # fmt: skip
    edit(file, lambda saved: saved.__setitem__(key, value))


def something_else(file: Path, rng: random.Random) -> None:
    """No checkpoint of a network."""
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    torch.save(rng.choice([
        [1], {}, None, itself, {"state_dict": 5}, {"state_dict": {}}, {"state_dict": {"network.x": 5}}, torch.ones(3),
        {"state_dict": {f"network.{i}": torch.ones(1) for i in range(11_000)}, "hyper_parameters": {}},
    ]), file)  # fmt: skip


def archived(file: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive as torch.save does, of these entries."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in {"version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name}", content)


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """Change what is in a file."""
    saved = torch.load(file, weights_only=True)
    change(saved)
    torch.save(saved, file)


def _spoil(weights: dict[str, Any], name: str, change: Callable[[Tensor], Any]) -> None:
    weights[name] = change(weights[name])


def _text(text: str) -> bytes:
    return len(text).to_bytes(4, "little") + text.encode()


SOURCE = Source(
    "checkpoints",
    made,
    (flip, truncate, call, zipped, tensors, hyper_parameters, facts, something_else),
    lambda file: zoo.load(file)(IMAGES),
    lambda logits: torch.equal(logits, published()),
    (CheckpointError, FoldError, zoo.ZooError),
    may_pass=(flip,),  # a byte that only fills up to the next tensor
)
