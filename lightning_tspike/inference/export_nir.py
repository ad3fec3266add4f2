"""NIR files, the neuromorphic intermediate representation (Pedersen et al., 2024, arXiv 2311.14641): binary neurons.

NIR describes a neuron by a differential equation. Stepped by dt = 1 (Euler forward), its LIF node is

    v_t = v_{t-1} + (v_leak - v_{t-1} + R I_t) / tau_m,    a spike where v_t > v_threshold, then v_t = v_reset

so that tau_m = R = 1 / (1 - tau), v_leak = v_reset = 0 is this package's binary neuron with decay tau < 1 and a hard
reset; its IF node, v_t = v_{t-1} + R I_t, is the one with tau = 1. As ours fires where u >= theta, v_threshold is the
float32 just below theta. Several edges into a node are added up. Shapes are without the batch, as everywhere in NIR.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..graph.operations import sums_whole_windows
from ..graph.rules import Join, rule_of
from ..neurons import SpikingNeuron
from .agreement import ExportError
from .whole_numbers import keeps_size

__all__ = ["FACTS", "load_nir", "to_nir"]

FACTS = "facts"
"""Name of the metadata in the graph's ``metadata``: JSON."""


def to_nir(graph: fx.Graph, model: nn.Module, facts: Mapping[str, Any]) -> bytes:
    """The contents of a NIR file.

    Args:
        graph: Of a folded network, traced on one frame [1, 1, C, H, W].
        model: The network's model.
        facts: Metadata, written as JSON.

    Raises:
        ExportError: NIR has no node for an operation or a neuron of the network; the message names it.
    """
    import nir

    writer = _Writer(model)
    for node in graph.nodes:
        writer.visit(node)
    written = nir.NIRGraph(writer.nodes, writer.edges, metadata={FACTS: json.dumps(facts), "dt": 1.0}, type_check=False)
    file = io.BytesIO()
    nir.write(file, written)
    return file.getvalue()


class _Writer:
    """Walks a traced graph. What a tensor is, is told by the names of the NIR nodes whose sum it is."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sums: dict[fx.Node, list[str]] = {}

    def visit(self, node: fx.Node) -> None:
        import nir

        reads = [name for n in node.all_input_nodes for name in self.sums.get(n, [])]
        module: Any = self.modules[str(node.target)] if node.op == "call_module" else None
        if node.op == "placeholder":
            self.sums[node] = self._add("input", nir.Input(input_type={"input": _shape(node)}), [])
        elif node.op == "output":
            self._add("output", nir.Output(output_type={"output": _shape(node.all_input_nodes[0])}), reads)
        elif not isinstance(node.meta["value"], Tensor):
            return  # a shape
        elif isinstance(module, (nn.Identity, nn.Dropout)) or keeps_size(node, module):
            self.sums[node] = reads
        elif isinstance(rule_of(node, self.modules, lambda _: False), Join) and "add" in getattr(
            node.target, "__name__", str(node.target)
        ):
            if len(set(reads)) < len(reads):
                raise ExportError(f"NIR has no edge for a tensor that is added to itself, as {node.name} does")
            self.sums[node] = reads
        else:
            name = str(node.target).replace(".", "_") if module is not None else node.name
            name = name if name not in self.nodes else node.name  # called at several places
            for suffix, part in _parts(node, module):
                reads = self._add(name + suffix, part, reads)
            self.sums[node] = reads

    def _add(self, name: str, part: Any, reads: list[str]) -> list[str]:
        self.nodes[name] = part
        self.edges += [(source, name) for source in reads]
        return [name]


def _parts(node: fx.Node, module: Any) -> Iterator[tuple[str, Any]]:
    """NIR's nodes for an operation, one behind the other, and what they add to its name."""
    import nir

    shape = _shape(node.all_input_nodes[0])
    if isinstance(module, SpikingNeuron):
        yield "", _neuron(module, shape, str(node.target))
        if module.raw_amplitude is not None:
            yield "_amplitude", nir.Scale(_full(shape, torch.as_tensor(module.amplitude)))
    elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
        options = (module.stride, module.padding, module.dilation, module.groups)
        # without the size of its input where NIR would infer another shape from it: it takes kernels for square
        is_plain = module.groups == 1 and module.kernel_size[0] == module.kernel_size[1]
        size = tuple(int(n) for n in shape[1:]) if is_plain else None
        yield "", nir.Conv2d(size, _array(module.weight), *options, _array(bias))
    elif type(module) is nn.Linear:
        weight = _array(module.weight)
        yield "", nir.Linear(weight) if module.bias is None else nir.Affine(weight, _array(module.bias))
    elif isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim in (-1, len(shape)):
        yield "", nir.Flatten({"input": shape}, start_dim=0)
    elif isinstance(module, nn.AvgPool2d) and sums_whole_windows(module):
        pool = nir.AvgPool2d if module.divisor_override is None else nir.SumPool2d
        if module.divisor_override not in (None, 1):
            raise ExportError(f"NIR has no pool with a divisor of its own, as {node.target} has")
        yield "", pool(*(_pair(size) for size in (module.kernel_size, module.stride, module.padding)))
    elif isinstance(module, nn.AdaptiveAvgPool2d) and node.meta["value"].shape[2:] == (1, 1):
        yield "", nir.AvgPool2d(shape[1:], shape[1:], _pair(0))
    else:
        what = f"{type(module).__name__} ({node.target})" if module is not None else f"{node.target} ({node.name})"
        hint = "; it is not part of the layer before it" if "Norm" in what else ""
        raise ExportError(f"NIR has no node for {what}{hint}: write the network as onnx or pt2")


def _neuron(neuron: SpikingNeuron, shape: np.ndarray, name: str) -> Any:
    import nir

    if neuron.is_ternary:
        raise ExportError(
            f"NIR has no neuron that fires -1, as {name} ({type(neuron).__name__}) does: its LIF and IF nodes fire 0 "
            "or 1. Train with neuron='binary_lif' for NIR, or write the network as onnx or pt2"
        )
    if neuron.reset != "hard":
        raise ExportError(f"NIR's neurons reset to a fixed potential, {name} has reset={neuron.reset!r}")
    threshold = _full(shape, torch.nextafter(neuron.firing_threshold.detach(), torch.tensor(0.0)))
    rest = np.zeros_like(threshold)
    decay = float(torch.as_tensor(neuron.decay).detach())
    if decay == 1:
        return nir.IF(r=np.ones_like(threshold), v_threshold=threshold, v_reset=rest)
    tau = np.full(shape, 1 / (1 - decay))  # float64, so that 1 - 1 / tau rounds to the decay in float32
    return nir.LIF(tau=tau, r=tau, v_leak=rest, v_threshold=threshold, v_reset=rest)


def load_nir(contents: bytes) -> Callable[[Tensor], Tensor]:
    """The network in a file, rebuilt by nirtorch: frames [B, T, C, H, W] to the logits of every step, [T, B, K]."""
    import nir
    import nirtorch

    graph = nir.read(io.BytesIO(contents))
    module = nirtorch.nir_to_torch(graph, _layers(nir))

    def run(frames: Tensor) -> Tensor:
        state, logits = None, []
        for frame in frames.unbind(1):
            now, state = module(frame, state)
            logits.append(now)
        return torch.stack(logits)

    return run


def _layers(nir: Any) -> dict[Any, Callable[[Any], nn.Module]]:
    """Layers for NIR's nodes, where nirtorch has none or one that leaves something out."""
    return {
        nir.LIF: lambda node: _Neuron(1 - 1 / node.tau, node.r / node.tau, node),
        nir.IF: lambda node: _Neuron(np.ones_like(node.r), node.r, node),
        nir.Scale: lambda node: _Scale(node.scale),
        nir.Conv2d: _conv,
        nir.Affine: _affine,
        nir.Flatten: lambda node: nn.Flatten(int(node.start_dim) + 1, int(node.end_dim)),
    }


class _Neuron(nn.Module):
    """NIR's LIF or IF node, stepped by dt = 1: v = keep * v + drive * I."""

    keep: Tensor
    drive: Tensor
    threshold: Tensor
    v0: Tensor

    def __init__(self, keep: np.ndarray, drive: np.ndarray, node: Any) -> None:
        super().__init__()
        for name, values in (("keep", keep), ("drive", drive), ("threshold", node.v_threshold), ("v0", node.v_reset)):
            self.register_buffer(name, torch.from_numpy(np.asarray(values, np.float32)))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = self.drive * x if state is None else self.keep * state + self.drive * x
        fires = v > self.threshold
        return fires.to(x.dtype), torch.where(fires, self.v0, v)


class _Scale(nn.Module):
    scale: Tensor

    def __init__(self, scale: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _conv(node: Any) -> nn.Module:
    out, each, *size = node.weight.shape
    groups = int(node.groups)
    stride, padding, dilation = (tuple(map(int, size)) for size in (node.stride, node.padding, node.dilation))
    layer: Any = nn.Conv2d(each * groups, out, size, stride, padding, dilation, groups)  # type: ignore[arg-type]
    return _with(layer, node)


def _affine(node: Any) -> nn.Module:
    return _with(nn.Linear(*node.weight.shape[::-1]), node)


def _with(layer: Any, node: Any) -> nn.Module:
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


def _shape(node: fx.Node) -> np.ndarray:
    return np.array(node.meta["value"].shape[1:])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _pair(size: Any) -> np.ndarray:
    return np.array(size if isinstance(size, tuple) else (size, size))


def _full(shape: np.ndarray, numbers: Tensor) -> np.ndarray:
    """Numbers of the layer, [], or of its channels, [C], for every neuron."""
    numbers = numbers.detach().float()
    return np.ascontiguousarray(numbers.reshape(-1, *[1] * (len(shape) - 1)).expand(*shape.tolist()).numpy())
