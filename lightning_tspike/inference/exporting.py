"""Networks for other programs: ONNX, PyTorch's own pt2 and NIR. Every file is run and compared before it is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..files.atomic import whole_file
from ..folding.absorb import fold
from ..graph.tracing import copy_of
from ..network.spiking_network import SpikingNetwork
from ..network.stepping import State, StepNetwork
from .agreement import Agreement, ExportError, compare
from .export_facts import facts_of, input_spec_of
from .export_nir import load_nir, to_nir
from .export_onnx import LEAST_OPSET, check_opset, load_onnx, replace_pools, to_onnx
from .export_pt2 import load_pt2, to_pt2
from .programs import EXAMPLES, WholeNetwork, program_of
from .rounded import round_layers
from .whole_numbers import Bounds, whole_number_inputs

__all__ = ["FORMATS", "Exported", "Format", "check_options", "export"]

Format = Literal["onnx", "pt2", "nir"]
FORMATS: tuple[Format, ...] = get_args(Format)

_Written: TypeAlias = tuple[bytes, Callable[[Tensor], Tensor]]
"""The contents of a file, and what they compute when they are loaded again."""

_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "nir": ("nir", "nirtorch")}


@dataclass(frozen=True)
class Exported:
    """A file that :func:`export` has written.

    Attributes:
        path: The file.
        size: In bytes.
        agreement: How far it agrees with the network.
        rounded: Names of the layers with int8 weights; all others are float32.
    """

    path: Path
    size: int
    agreement: Agreement
    rounded: tuple[str, ...]


def export(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    format: Format = "onnx",
    *,
    int8: bool = False,
    step: bool = False,
    opset: int | None = None,
    example: Tensor | None = None,
    name: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a network as a file for other programs: folded, its batch norms part of the layers before them.

    The file is run (ONNX Runtime, torch.export.load, nirtorch) on batches of another size than it was made with and
    compared with the network; one that deviates is not kept. What is known of the input and the classes
    (``network.pretrained_cfg``) is written into it, see :func:`lightning_tspike.inference.export_facts.facts_of`.

    Args:
        network: In whatever mode; it is left as it is. A network that is folded already may be folded again.
        path: The file.
        format: ``"onnx"``, ``"pt2"`` (torch.export), or ``"nir"`` for binary neurons.
        int8: Round the weights of layers that read spikes, or sums of them, to int8; see
            :mod:`lightning_tspike.inference.rounded`.
        step: Write a single time step, from a frame and the neurons' memories to logits and memories, instead of all.
        opset: Version of ONNX's operators; default is 18, the oldest that can be written.
        example: An image [B, C, H, W] or frames [B, T, C, H, W] such as the file is to take; by default what is known
            of the network's input says it.
        name: Of the network, for the metadata.
        license: Of the weights, likewise.
        overwrite: Whether a file that is there already goes.

    Returns:
        What was written, and how far it agrees with the network.

    Raises:
        ExportError: An option does not go with another one, the network has an operation that the format has not, or
            the file deviates.
        FileExistsError: There is a file already.
        ModuleNotFoundError: The packages that the format needs are not installed.
        lightning_tspike.folding.FoldError: The network cannot be folded.
    """
    path = Path(path)
    opset = check_options(path, format, int8=int8, step=step, opset=opset, overwrite=overwrite)
    if not network.neurons():
        raise ExportError(
            "the network has no layers of spiking neurons; of one that runs on integers, export the network that it "
            "was made from, with int8=True"
        )
    example = _example(network) if example is None else example.detach().to("cpu", torch.float32)
    folded, _ = fold(copy_of(network).float(), example, merge_bn=True, integer_pools=int8)
    folded = folded.to("cpu")
    if (timesteps := folded.call(example).timesteps) != folded.timesteps:
        folded.timesteps = timesteps  # that of the frames
    if "input_size" in folded.pretrained_cfg:
        size = tuple(example.shape[-len(folded.input_size) :])
        folded.pretrained_cfg = {**folded.pretrained_cfg, "input_size": size}
    expected = copy_of(folded)
    rounded: tuple[str, ...] = ()
    inputs: Mapping[str, Bounds] = {}
    if int8:
        inputs = whole_number_inputs(folded.trace(example[:1]), folded.model)
        rounded = round_layers(expected.model, inputs, as_onnx=False)
    per_step = step or format == "nir"
    facts = facts_of(folded, name=name, license=license, weights="int8" if int8 else "float32", is_step=per_step)
    if format == "nir":
        contents, run = _nir(folded, example, facts)
    else:
        module = _module(folded, example, inputs, step=step, as_onnx=format == "onnx")
        if isinstance(module, StepNetwork):
            facts["memories"] = {site: list(shape) for site, shape in module.sites.items()}
        contents, run = _onnx(module, example, facts, opset) if format == "onnx" else _pt2(module, example, facts)
    shape = example.shape[1:]
    if per_step and example.ndim == len(folded.input_size) + 1:  # an image, shown at every step
        shape = torch.Size((timesteps, *shape))
    agreement = compare(expected, run, shape, per_step=per_step)
    with whole_file(path) as file:
        file.write(contents)
    return Exported(path, len(contents), agreement, rounded)


def check_options(
    path: Path,
    format: str,
    *,
    int8: bool = False,
    step: bool = False,
    opset: int | None = None,
    overwrite: bool = False,
) -> int:
    """Check the options of :func:`export` before anything is computed; gives the version of ONNX's operators.

    Raises:
        ExportError: They do not go together, or there is no such format.
        FileExistsError: There is a file already.
        ModuleNotFoundError: The packages that the format needs are not installed.
    """
    if format not in FORMATS:
        raise ExportError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if missing := [package for package in _NEEDS[format] if find_spec(package) is None]:
        raise ModuleNotFoundError(f"format {format} needs {', '.join(missing)}: pip install 'lightning-tspike[export]'")
    if opset is not None and format != "onnx":
        raise ExportError(f"opset={opset} is a version of ONNX's operators: leave it out for format {format}")
    if format == "nir" and (int8 or step):
        raise ExportError(
            f"format nir has no {'int8' if int8 else 'step'}: a NIR graph describes neurons and float32 weights, and "
            "time passes in whoever runs it; leave it out"
        )
    if format == "onnx":
        check_opset(opset if opset is not None else LEAST_OPSET)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: say --overwrite (overwrite=True) to replace it, or another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    return opset if opset is not None else LEAST_OPSET


def _example(network: SpikingNetwork) -> Tensor:
    """Noise of the shape of the network's input."""
    spec = input_spec_of(network)
    shape: tuple[int, ...] = spec.input_size or network.input_size
    if spec.frames is not None:
        shape = (network.timesteps, *shape)
    return torch.randn(EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def _module(
    network: SpikingNetwork, example: Tensor, inputs: Mapping[str, Bounds], *, step: bool, as_onnx: bool
) -> WholeNetwork | StepNetwork:
    """What the file computes; ``inputs`` of the layers whose weights are to be rounded."""
    module: Any = (
        StepNetwork(network, example)
        if step
        else WholeNetwork(network, frames=example.ndim == len(network.input_size) + 2)
    )
    layers = module.layers if step else module.model
    round_layers(layers, inputs, as_onnx=as_onnx)
    if as_onnx:
        replace_pools(layers)
    return module


def _onnx(module: WholeNetwork | StepNetwork, example: Tensor, facts: Mapping[str, Any], opset: int) -> _Written:
    """Images or frames to logits; of a step frame and ``memory.SITE`` to logits and ``next_memory.SITE``."""
    program = program_of(module, example)
    if isinstance(module, WholeNetwork):
        name = "frames" if module.frames else "images"
        contents = to_onnx(program, inputs=[name], outputs=["logits"], opset=opset, facts=facts)
        whole = load_onnx(contents)
        return contents, lambda x: whole({name: x})[0]
    before, after = ([f"{time}.{site}" for site in module.sites] for time in ("memory", "next_memory"))
    contents = to_onnx(program, inputs=["frame", *before], outputs=["logits", *after], opset=opset, facts=facts)
    run = load_onnx(contents)

    def one_step(frame: Tensor, state: State) -> tuple[Tensor, State]:
        logits, *memories = run({"frame": frame, **dict(zip(before, state.values(), strict=True))})
        return logits, dict(zip(state, memories, strict=True))

    return contents, partial(_all_steps, one_step, module)


def _pt2(module: WholeNetwork | StepNetwork, example: Tensor, facts: Mapping[str, Any]) -> _Written:
    contents = to_pt2(program_of(module, example), facts)
    loaded = load_pt2(contents)
    return contents, loaded if isinstance(module, WholeNetwork) else partial(_all_steps, loaded, module)


def _nir(network: SpikingNetwork, example: Tensor, facts: Mapping[str, Any]) -> _Written:
    frame = example.reshape(-1, 1, *example.shape[-len(network.input_size) :])[:1]  # [1, 1, C, H, W]
    contents = to_nir(network.trace(frame), network.model, facts)
    return contents, load_nir(contents)


def _all_steps(
    one_step: Callable[[Tensor, State], tuple[Tensor, State]], module: StepNetwork, frames: Tensor
) -> Tensor:
    """Logits of every step [T, B, K], from frames [B, T, ...]."""
    state, logits = module.initial_state(len(frames)), []
    for frame in frames.unbind(1):
        now, state = one_step(frame, state)
        logits.append(now)
    return torch.stack(logits)
