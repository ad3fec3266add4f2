"""The ways in which a network can be run, each an entry of a table; and the ANN of the same architecture."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..folding.verification import FoldError
from ..graph.activations import replace_module
from ..graph.tracing import TraceError
from ..inference.agreement import ExportError
from ..inference.exporting import export
from ..inference.integer_network import integer, why_not
from ..inference.lowering import LoweringError
from ..kernels import can_compile
from ..network.config import OWN
from ..network.spiking_network import SpikingNetwork

__all__ = ["FLOAT32", "RUNTIMES", "Run", "RuntimeMissingError", "ann_of", "prepare"]


@dataclass(frozen=True)
class Run:
    """A network in a runtime; called, it classifies the images that it was made for.

    Attributes:
        classify: What gives the logits.
        remark: What there is to say of the network in this runtime.
    """

    classify: Callable[[], Any]
    remark: str = ""

    def __call__(self) -> Any:
        return self.classify()


class RuntimeMissingError(RuntimeError):
    """This machine, or this network, does not have the runtime; the message says what it takes."""


def _eager(network: nn.Module, images: Tensor) -> Run:
    return Run(partial(network, images))


def _channels_last(network: nn.Module, images: Tensor) -> Run:
    if images.ndim == 4:  # frames get their layout from the first convolution, whose weights have it
        images = images.contiguous(memory_format=torch.channels_last)
    return Run(partial(copy.deepcopy(network).to(memory_format=torch.channels_last), images))


def _compiled(network: nn.Module, images: Tensor) -> Run:
    device = images.device.type
    if not can_compile(device):
        needed = "a C++ compiler ($CXX, c++, g++ or clang++)" if device == "cpu" else "Triton and a C compiler"
        raise RuntimeMissingError(f"torch.compile needs {needed}: install it")
    network = copy.deepcopy(network)
    inner: nn.Module = network.model if isinstance(network, SpikingNetwork) else network
    inner.compile(dynamic=False)
    try:
        network(images)  # this compiles it
    except Exception as error:  # of many classes, most of them private to torch
        raise RuntimeMissingError(f"torch.compile fails: {str(error).strip().splitlines()[0]}") from error
    return Run(partial(network, images))


def _integer(network: SpikingNetwork, images: Tensor) -> Run:
    if images.device.type != "cpu":
        raise RuntimeMissingError(f"the integer runtime is for CPUs, not for {images.device.type}")
    if (needed := why_not()) is not None:
        raise RuntimeMissingError(f"it needs {needed}")
    try:
        made = integer(network)
    except (TraceError, LoweringError) as error:
        raise RuntimeMissingError(f"this network has no integer form: {error}") from error
    return Run(partial(made, images), str(getattr(made, "runtime", "")))


def _onnxruntime(network: SpikingNetwork, images: Tensor, *, int8: bool) -> Run:
    if images.device.type != "cpu":
        raise RuntimeMissingError(f"ONNX Runtime is measured on CPUs, not on {images.device.type}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            exported = export(network, Path(folder) / "network.onnx", "onnx", int8=int8, example=images[:1])
            contents = exported.path.read_bytes()
    except ModuleNotFoundError as error:  # it says what to install
        raise RuntimeMissingError(str(error)) from error
    except (ExportError, FoldError) as error:
        raise RuntimeMissingError(f"this network cannot be written as ONNX: {error}") from error
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: images.numpy()}
    return Run(partial(session.run, None, fed), str(exported.agreement))


FLOAT32: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "eager": _eager,
    "channels last": _channels_last,
    "compiled": _compiled,
}
"""How torch runs any module; of the ANN, the fastest of these counts."""

RUNTIMES: dict[str, Callable[[Any, Tensor], Run]] = {
    **FLOAT32,
    "integer": _integer,
    "ONNX Runtime": partial(_onnxruntime, int8=False),
    "ONNX Runtime int8": partial(_onnxruntime, int8=True),
}
"""How a spiking network can be run. An entry gets a network in eval mode and its images, on one device, and leaves both
as they are; it raises :class:`RuntimeMissingError` where it cannot run."""


def prepare(
    runtimes: Mapping[str, Callable[[Any, Tensor], Run]],
    network: nn.Module,
    images: Tensor,
    *,
    after_each: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, Run], dict[str, str]]:
    """Make a network ready in each runtime that is there, and run it once.

    Args:
        runtimes: Entries of :data:`RUNTIMES`.
        network: In eval mode.
        images: [B, C, H, W] or frames [B, T, C, H, W], on the network's device.
        after_each: Called after each runtime.

    Returns:
        What runs the network on these images, by runtime; and why the others are missing.
    """
    runs, missing = {}, {}
    for name, make in runtimes.items():
        try:
            run = make(network, images)
            run()
            runs[name] = run
        except RuntimeMissingError as error:
            missing[name] = str(error)
        after_each()
    return runs, missing


def ann_of(network: SpikingNetwork) -> nn.Module:
    """The ANN of the same architecture, in eval mode on the network's device, with weights that were never trained.

    It is timm's model of that name, or, of a network of your own, the same modules with ReLUs for neurons.
    """
    weight = next(network.parameters())
    config = network.config
    if config is None or config.backbone.startswith(OWN):
        model = copy.deepcopy(network.model)
        with ExitStack() as undo:
            for name in network.neurons():
                replace_module(model, model.get_submodule(name), nn.ReLU(), undo)
            undo.pop_all()
    else:
        model = timm.create_model(
            config.backbone, num_classes=config.num_classes, in_chans=config.in_chans, **config.backbone_kwargs
        )
    return model.to(weight.device, weight.dtype).eval()
