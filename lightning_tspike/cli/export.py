"""``tspike export``: a network for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._waiting import waiting
from .commands import Commands, takes_network

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the command of this file."""
    export = commands.add(
        "export",
        _export,
        "write a network for other programs: ONNX, pt2, NIR",
        "Write a network as a file that runs without this package, folded, with its preprocessing and its class names. "
        "The file is run and compared with the network before it is kept.",
    )
    takes_network(export)
    export.add_argument(
        "--format", default="onnx", help="onnx, pt2 (torch.export) or nir (binary neurons alone); default: %(default)s"
    )
    export.add_argument("--int8", action="store_true", help="int8 weights in all layers that read spikes")
    export.add_argument(
        "--step", action="store_true", help="a single time step, the neurons' memories in and out, instead of all"
    )
    export.add_argument("--timesteps", type=int, help="time steps T in the file; default: those of its training")
    export.add_argument("--opset", type=int, help="version of ONNX's operators, 18 or later; default: 18")
    export.add_argument("-o", "--output", type=Path, help="file to write; default: NAME[.int8][.step].FORMAT")
    export.add_argument("--overwrite", action="store_true", help="replace a file that is there already")


def _export(options: argparse.Namespace) -> None:
    from ..inference.exporting import check_options, export  # these import torch
    from ..store.catalog import find_entry
    from ..store.loading import load

    entry = find_entry(options.network)
    name = entry.name if entry else Path(options.network.partition("@")[0]).name
    kind = "".join(part for part, is_asked in ((".int8", options.int8), (".step", options.step)) if is_asked)
    output = options.output or Path(f"{name}{kind}.{options.format}")
    choices = {key: getattr(options, key) for key in ("format", "int8", "step", "opset", "overwrite")}
    check_options(output, **choices)  # before anything is fetched
    network = load(options.network, timesteps=options.timesteps)
    with waiting(f"exporting {name} to {options.format}"):
        written = export(network, output, **choices, name=name, license=entry.license if entry else None)
    print(f"written: {written.path} ({written.size:,} bytes; {written.agreement})")
    if options.int8:
        print(f"int8 weights: {len(written.rounded)} layers; the others, which do not read spikes alone, are float32")
