"""Folders of networks that are broken or were made to do harm, a source of cases for ``benchmarks.hostile``.

    python -m benchmarks.hostile_folders [COUNT] [SEED]

Flipped bytes, truncated files, wrong types and shapes, NaN weights, missing and extra tensors, keys that occur twice,
huge declared sizes, paths out of the folder, links out of it, pickles, bombs of JSON and YAML, names of modules to
import. A change that also mends every checksum stands for an author who means harm.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_tspike import zoo
from lightning_tspike.files.weights import FILES, file_facts
from lightning_tspike.store.folder import FolderError, read_folder
from lightning_tspike.store.manifest import seal

from .hostile import Harm, Source, run

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def flip(folder: Path, rng: random.Random) -> None:
    """Change a byte of a file."""
    file = folder / rng.choice([WEIGHTS, CONFIG])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(folder: Path, rng: random.Random) -> None:
    """Cut a file off."""
    file = folder / rng.choice([WEIGHTS, CONFIG])
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def remove(folder: Path, rng: random.Random) -> None:
    """Leave a file out."""
    (folder / rng.choice([WEIGHTS, CONFIG])).unlink()


def tensors(folder: Path, rng: random.Random) -> None:
    """Spoil a tensor, and mend the checksums."""
    weights = load_file(folder / WEIGHTS)
    name = rng.choice(sorted(weights))
    change: Callable[[Tensor], Tensor | None] = rng.choice([
        lambda x: None,
        lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else x + 2**40,
        lambda x: torch.full_like(x, float("inf")) if x.is_floating_point() else x.float(),
        lambda x: x.double() if x.is_floating_point() else x.short(),
        lambda x: x.to(torch.int8),
        lambda x: x.to(torch.complex64),
        lambda x: torch.zeros(*x.shape, 2),
        lambda x: x.flatten()[:0],
        lambda x: x.to(torch.float8_e4m3fn) if x.is_floating_point() else x.bool(),
    ])  # fmt: skip
    changed = change(weights.pop(name))
    if changed is not None:
        weights[name] = changed.contiguous()
    if changed is None or rng.random() < 0.2:
        weights[rng.choice(["../" * 5 + "etc/passwd", "/etc/passwd", "fc.weight:scale", "x" * 5000, name + "\0"])] = (
            torch.ones(rng.randrange(5))
        )
    # whole numbers that count batches are not used in inference: changing one alone would change nothing
    weights["act1.threshold"] = -weights.get("act1.threshold", torch.ones(()))
    save_file(weights, folder / WEIGHTS)
    mend(folder)


def header(folder: Path, rng: random.Random) -> None:
    """Declare what is not there in the header of the weights, and mend the checksums."""
    content = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text, data = content[8 : 8 + length].decode(), content[8 + length :]
    names = [key for key in json.loads(text) if key != "__metadata__"]
    entry = {"dtype": "F32", "shape": [2**31, 2**31], "offsets": [0, 2**62]}
    twice = f'"{rng.choice(names)}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},'
    text, length = rng.choice([
        (text, 2 ** rng.choice([31, 40, 62, 63])),
        (json.dumps({"a": {**entry, "data_offsets": [0, 2**62]}}), None),
        (json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), None),
        (text.replace('"shape":[', f'"shape":[{2 ** rng.choice([20, 31, 62, 64])},', 1), None),
        ("{" + twice + text[1:], None),
        ("[" * 100_000, None),
        (text.replace("F32", "os.system"), None),
    ])  # fmt: skip
    raw = text.encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    mend(folder)


def replace_weights(folder: Path, rng: random.Random) -> None:
    """Something else in the place of the weights."""
    file = folder / WEIGHTS
    file.unlink()
    kind = rng.choice(["pickle", "torch", "link", "device", "folder", "pipe", "empty", "loop", "zip"])
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Harm()))
    elif kind == "torch":
        torch.save({"state_dict": Harm()}, file)
    elif kind == "link":
        file.symlink_to(Path(zoo.__file__).parent / "weights" / "tspike-digits" / WEIGHTS)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(WEIGHTS)
    else:
        file.write_bytes(b"" if kind == "empty" else b"PK\3\4" + rng.randbytes(500))
    if rng.random() < 0.5 and kind in ("pickle", "torch", "zip", "empty"):
        mend(folder)


def configuration(folder: Path, rng: random.Random) -> None:
    """A configuration that asks for something else, sealed as its author would."""
    config = json.loads((folder / CONFIG).read_text())
    network = config["network"]
    big = 10 ** rng.choice([4, 6, 9, 12, 30])
    changes: list[tuple[dict[str, Any], str, Any]] = [
        (network, "backbone", rng.choice(["hf-hub:a/b", "local-dir:/tmp", "/etc/passwd", "os.system", "", "v" * 99])),
        (network, "num_classes", rng.choice([big, -1, 0, 1.5, True, None, "10"])),
        (network, "in_chans", rng.choice([big, -1, 0, "3"])),
        (network, "timesteps", rng.choice([0, -1, "4", None, 10**12])),
        (network, "neuron", rng.choice(["os.system", "torch.nn.ReLU", 3, None])),
        (network, "decay", rng.choice([-1, "x", [], None])),
        (network, "amplitude", rng.choice(["eval", 0, None])),
        (network, "backbone_kwargs", rng.choice([
            {"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, {"pretrained_cfg": {"url": "http://127.0.0.1:9"}},
            {"layers": [big, 1, 1]}, {"widths": [big, 32, 64]}, {"layers": [1] * 10_000, "widths": [8] * 10_000},
            {"act_layer": "os.system"}, {"block": "torch.load"}, {"cache_dir": "/"}, {"stem": "__import__('os')"}, "x",
        ])),
        (network, rng.choice(["__class__", "_target_", "class_path", "import"]), "os.system"),
        (config, "schema_version", rng.choice([0, -1, 99, 2**70, "3", 3.0, None, True])),
        (config, "amplitudes", rng.choice([["fc"], [["act1"]], "act1", [None], ["act1"]])),
        (config, "sum_pools", rng.choice([["fc"], [3], {}, ["../x"]])),
        (config, "merged_norms", rng.choice([{"bn1": "bn1"}, {"conv1": "conv1"}, [], {"bn1": "conv1"}])),
        (config, "preprocessing", rng.choice([
            [], "x", {"input_size": [1, 2]}, {"mean": "x"}, {"std": [0]}, {"input_size": [10**9] * 3},
        ])),
        (config, "label_names", rng.choice([["a"], "abc", [1] * 10, {}])),
        (config, "weights", rng.choice([
            {}, {"float32": {}}, {"../x": {}}, {"float32": {"sha256": "", "size": big}}, [],
        ])),
        (config, rng.choice(["auto_map", "_target_", "__init__"]), "modeling.Net"),
    ]  # fmt: skip
    target, key, value = rng.choice(changes)
    target[key] = value
    (folder / CONFIG).write_text(json.dumps(seal(config)))


def text(folder: Path, rng: random.Random) -> None:
    """A configuration that is a bomb, or no JSON."""
    file = folder / CONFIG
    whole = file.read_text()
    key = rng.choice(["schema_version", "network", "sha256"])
    file.write_text(rng.choice([
        "[" * 1_000_000, '{"a":' * 100_000, "9" * 1_000_000, '{"schema_version": ' + "9" * 100_000 + "}", "null", "[]",
        "{" + f'"{key}": 1, ' + whole.lstrip()[1:], whole.replace("3", "NaN", 1), "\ufeff" + whole, whole + "x",
        "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n" * 1000, "!!python/object/apply:os.system [true]", " " * 20_000_000,
        "\0" * 1000, whole.replace("network", "network\\u0000"),
    ]))  # fmt: skip


def beside(folder: Path, rng: random.Random) -> None:
    """Files that nothing reads: the network must be the one that was published."""
    bomb = "---\na: &a [x,x,x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a,*a,*a]\n" for i in range(30)) + "---\n"
    name, content = rng.choice([
        ("README.md", bomb), ("fold_report.json", "[" * 1_000_000), ("modeling.py", "raise SystemExit"),
        ("conftest.py", "import os; os.environ['TSPIKE_HARMED'] = '1'"), ("pytorch_model.bin", "pickle"),
        ("__init__.py", "raise SystemExit"), ("requirements.txt", "evil"), ("training_log.csv", "=cmd|' /C calc'!A0"),
    ])  # fmt: skip
    (folder / name).write_text(content)


def mend(folder: Path) -> None:
    """Checksums as they would be, had the folder been written like this."""
    config = json.loads((folder / CONFIG).read_text())
    config["weights"] = {"float32": file_facts(folder / FILES["float32"])}
    (folder / CONFIG).write_text(json.dumps(seal(config)))


ORIGINAL = Path(zoo.__file__).parent / "weights" / "tspike-digits"
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@functools.cache
def published() -> Tensor:
    """What the sound network says of the images."""
    return read_folder(ORIGINAL)[0](IMAGES)


def copied(scratch: Path) -> Path:
    """A sound folder."""
    return Path(shutil.copytree(ORIGINAL, scratch / "net"))


SOURCE = Source(
    "folders",
    copied,
    (flip, truncate, remove, tensors, header, replace_weights, configuration, text, beside),
    lambda folder: read_folder(folder)[0](IMAGES),
    lambda logits: torch.equal(logits, published()),
    (FolderError,),
    may_pass=(flip, header),  # a byte of white space, a key that occurs twice with the same meaning
    must_pass=(beside,),
)

if __name__ == "__main__":
    sys.exit(run([SOURCE], *map(int, sys.argv[1:] or ["1000"])) > 0)
