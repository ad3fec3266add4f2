"""The integer runtime: a spiking network whose spikes are bytes and whose weights are int8."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from .._calls import running
from .._tables import new_table, table_text
from ..graph.tracing import copy_of
from ..kernels import integer as kernels
from ..kernels.native import has_instructions
from ..network.spiking_network import SpikingNetwork
from .integer_layers import IntegerNeuron, IntegerWeighted
from .kernel_choice import choose_kernels
from .lowering import LoweringError, lower

__all__ = ["IntegerNetwork", "IntegerReport", "integer", "why_not"]

_NEEDED = ("qconv2d_pointwise", "qconv_prepack", "qlinear_pointwise", "qlinear_prepack")
_CACHE = 8 << 20  # bytes of currents of one layer that may be there at a time: about what the nearest caches hold


@dataclass(frozen=True)
class IntegerReport:
    """What runs on integers in an :class:`IntegerNetwork`, and what does not.

    Attributes:
        layers: Every layer with weights, neuron and other operation on spikes, in the order of execution: its name, and
            None if it runs on bytes and int8 weights, else why it stays in float32.
        weight_bytes: Memory of all weights, biases and scales.
        float_weight_bytes: The same of the network that it was made from, in float32.
        active: Share of four neighbouring input channels that were not all silent on the example, of convolutions that
            could skip silence.
        sparse: Those that do.
    """

    layers: dict[str, str | None]
    weight_bytes: int
    float_weight_bytes: int
    active: dict[str, float] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, str]:
        """What stays in float32, and why."""
        return {name: why for name, why in self.layers.items() if why is not None}

    def details(self) -> str:
        """A table of all layers, and the summary below."""
        table = new_table("layer", "runs on", "why", "active fours", "skips silence")
        for name, why in self.layers.items():
            active = f"{self.active[name]:.2f}" if name in self.active else ""
            skips = "yes" if name in self.sparse else "no" if active else ""
            table.add_row(name, "integers" if why is None else "float32", why or "", active, skips)
        return f"{table_text(table)}{self}"

    def __str__(self) -> str:
        count = len(self.layers) - len(self.kept)
        kept = "; ".join(f"{name} ({why})" for name, why in self.kept.items())
        return (
            f"{count} of {len(self.layers)} operations on integers"
            + (f", {len(self.sparse)} of them skip silence" if self.active else "")
            + (f"; in float32: {kept}" if kept else "")
            + f"; weights {self.weight_bytes:,} bytes, {self.weight_bytes / max(1, self.float_weight_bytes):.0%} of "
            f"float32's {self.float_weight_bytes:,}"
        )


class IntegerNetwork(SpikingNetwork):
    """A spiking network on integers, made by :func:`integer`; called as the network that it was made from.

    Runs on the CPU, without gradients. Large batches go through it some images at a time, so that what one layer hands
    to the next stays in the processor's caches.

    Attributes:
        runtime: What runs on integers, and what does not.
    """

    def __init__(self, model: nn.Module, network: SpikingNetwork, runtime: IntegerReport) -> None:
        encoders = [f"{name}.neuron" if isinstance(model.get_submodule(name), IntegerNeuron) else name
                    for name in network.encoders]  # fmt: skip
        super().__init__(model, network.timesteps, input_size=network.input_size, encoders=encoders)
        self.config, self.pretrained_cfg = network.config, dict(network.pretrained_cfg)
        self.runtime = runtime
        self._per_image = 0  # bytes of the largest current of an image and a time step, at input_size

    def forward(self, x: Tensor, *, per_step: bool = False, timesteps: int | None = None) -> Any:
        call = self.call(x, timesteps)  # raises what is wrong with the input
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        largest = self._per_image * call.timesteps * math.prod(x.shape[-2:]) / math.prod(self.input_size[-2:])
        count = max(1, int(_CACHE / max(1.0, largest)))
        with torch.no_grad():
            parts = [super(IntegerNetwork, self).forward(part, per_step=per_step, timesteps=timesteps)
                     for part in x.split(count)]  # fmt: skip
        if len(parts) == 1:
            return parts[0]
        return tree_map(lambda *tensors: torch.cat(tensors, 1 if per_step else 0), *parts)

    def trace(self, x: Tensor) -> fx.Graph:
        """The graph of ``model``; each node's ``meta["value"]`` holds what it gives for ``x``."""
        assert isinstance(self.model, fx.GraphModule)
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.model.graph, {}))
        with torch.no_grad(), running(self.call(x)):
            _Recorder(self.model, graph=graph).run(self.fold_time(x))
        return graph

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise ValueError(
                f"an integer network runs on the CPU with float32 inputs, it cannot be moved to {probe.device} or "
                f"{probe.dtype}: move the network that it was made from"
            )
        return super()._apply(fn, recurse)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node gives."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["value"] = value = super().run_node(n)
        return value


def integer(network: SpikingNetwork, example: Tensor | None = None) -> SpikingNetwork:
    """Make a network run on integers: spikes as bytes, int8 weights, sums in 32 bits.

    Weights are rounded to int8 for each output channel, by the rule of files with int8 weights, and nothing else is
    rounded: layers add up whole numbers exactly, norms become part of the layers or neurons next to them. What comes
    before the first neurons, and what has no integer form, stays in float32.

    Args:
        network: A folded network on the CPU in float32; one that is not folded as well, whose amplitudes then become
            part of the weights where that is possible. It is left as it is.
        example: Images [B, C, H, W] or frames [B, T, C, H, W] as the network will see. Convolutions whose input fires
            seldom on them skip silence; results are the same. By default none does.

    Returns:
        An :class:`IntegerNetwork`, called in the same way; ``runtime`` says what runs on integers. Where this machine
        has not what it takes (:func:`why_not`): a copy of the network in eval mode, as it is; a warning says so once.

    Raises:
        ValueError: The network is not on the CPU or not in float32.
        lightning_tspike.graph.TraceError: The network cannot be traced.
        lightning_tspike.inference.lowering.LoweringError: Its graph cannot be followed.
    """
    weight = next(network.parameters(), torch.empty(0))
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"the integer runtime is for networks on the CPU in float32, this one is on {weight.device} in "
            f"{weight.dtype}: convert it by network.to('cpu', torch.float32)"
        )
    copied = copy_of(network).eval()
    if (missing := why_not()) is not None:
        _warn(f"the integer runtime needs {missing}: the network runs in float32 instead")
        return copied
    graph = copied.trace(torch.zeros(1, *copied.input_size))
    with torch.no_grad():
        model, layers = lower(graph, copied.model)
    model = model.to(memory_format=torch.channels_last)
    report = IntegerReport(layers, _bytes(model), sum(4 * p.numel() for p in network.model.parameters()))
    made = IntegerNetwork(model, copied, report).eval()
    made._per_image = _try_out(made)
    if example is not None:
        active, skipping = choose_kernels(made.model, made.trace(example))
        made.runtime = replace(report, active=active, sparse=skipping)
    return made


@functools.cache
def why_not() -> str | None:
    """What this machine lacks for the integer runtime; None where nothing."""
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.onednn, name) for name in _NEEDED):
        return f"a build of torch with oneDNN's int8 layers (this is {torch.__version__})"
    if not has_instructions("avx2"):
        return "an x86 processor with AVX2 instructions"
    return None if kernels.is_available() else "a C++ compiler ($CXX, c++, g++, clang++)"


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _try_out(made: IntegerNetwork) -> int:
    """Run two images, where the graph was made from one; gives the bytes of an image's largest current in a step."""
    images = 2
    rows = images * made.timesteps
    try:
        graph = made.trace(torch.zeros(images, *made.input_size))
    except Exception as error:  # whatever torch's operations raise
        raise LoweringError(f"its graph is for one image alone and fails for {images}: {error}") from error
    modules = dict(made.model.named_modules())
    largest = 0
    for node in graph.nodes:
        value = node.meta["value"]
        if node.op == "output" and any(len(v) != rows for v in tree_leaves(value)):
            raise LoweringError(
                f"its graph is for one image alone: for {images} it gives {[len(v) for v in value]} rows"
            )
        if node.op == "call_module" and isinstance(modules[node.target], IntegerWeighted):
            largest = max(largest, value.numel() * 4 // rows)
    return largest


def _bytes(model: nn.Module) -> int:
    """Memory of parameters, buffers and int8 weights."""
    packed = sum(m.packed.numel() for m in model.modules() if isinstance(m, IntegerWeighted))
    return packed + sum(t.numel() * t.element_size() for t in model.state_dict().values())
