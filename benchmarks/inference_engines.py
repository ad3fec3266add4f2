"""Which engine has the fastest convolution of spikes: the layers of a network, one by one, in one run.

======================= =================================================================================== ===========
engine                  what                                                                                gives
======================= =================================================================================== ===========
float32                 ``F.conv2d``                                                                        float32
float32, channels last  the same with both in channels last                                                 float32
oneDNN int8             ``torch.ops.onednn.qconv2d_pointwise``: uint8 spikes (zero point 1), int8 weights   float32
QLinearConv             ONNX Runtime: the same, requantised to 8 bits, which rounds                         uint8
ConvInteger             ONNX Runtime: the same, one scale for all channels, a pass to scale it still to come int32
======================= =================================================================================== ===========
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tspike._observe import observing

from .measuring import in_turn, ratio

BASE = "float32"


class Layer(NamedTuple):
    """A convolution, and the images that it reads."""

    channels: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    size: int


def layers_of(model: nn.Module, images: Tensor) -> Counter[Layer]:
    """The square, ungrouped convolutions that read spikes (all but those of the images), and how often each occurs."""
    layers: Counter[Layer] = Counter()

    def count(_name: str, conv: Any, x: Tensor, _y: Tensor) -> None:
        (kernel, other), (stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
        if conv.groups == 1 and kernel == other and conv.in_channels != images.shape[1]:
            layers[Layer(conv.in_channels, conv.out_channels, kernel, stride, padding, x.shape[-1])] += 1

    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad(), observing(convs, count):
        model(images)
    return layers


def measure_engines(layers: Counter[Layer], batch: int, rate: float, *, rounds: int, threads: int) -> dict[str, Any]:
    """Time every engine that is there on every layer.

    Args:
        layers: What is measured, and how often it occurs in the network.
        batch: Images and time steps together.
        rate: Share of spikes that are not 0.
        rounds: Calls that count.
        threads: Of a call.

    Returns:
        Rows, a layer each, with the medians in ms, and the last for all layers of the network; and by how much the
        float32 results of oneDNN's int8 differ from those of the rounded weights, relative to the largest.
    """
    rows: list[dict[str, Any]] = []
    totals: dict[str, list[float]] = {}
    difference = 0.0
    for layer, times_there in layers.items():
        spikes, weights, scales = _numbers(layer, batch, rate)
        engines = _engines(layer, spikes, weights, scales, threads)
        if "oneDNN int8" in engines:
            expected = engines[BASE]()
            difference = max(
                difference, float((engines["oneDNN int8"]() - expected).abs().max() / expected.abs().max())
            )
        times = in_turn(engines, "cpu", rounds=rounds)
        rows.append(_row(layer, times_there, times))
        for name, seconds in times.items():
            so_far = totals.setdefault(name, [0.0] * rounds)
            totals[name] = [a + times_there * b for a, b in zip(so_far, seconds, strict=True)]
    rows.append(_row(None, layers.total(), totals))
    return {"batch x T": batch, "firing rate": rate, "rows": rows, "oneDNN int8 differs by": difference}


def _row(layer: Layer | None, count: int, times: dict[str, list[float]]) -> dict[str, Any]:
    name = "all of them" if layer is None else (
        f"{layer.channels} to {layer.outputs}, {layer.kernel}x{layer.kernel}"
        f"{f', stride {layer.stride}' if layer.stride > 1 else ''}, {layer.size}x{layer.size}"
    )  # fmt: skip
    row: dict[str, Any] = {"layer": name, "in the network": count}
    row[f"{BASE}, ms"] = 1e3 * statistics.median(times[BASE])
    return row | {f"{engine} / {BASE}": ratio(own, times[BASE]) for engine, own in times.items() if engine != BASE}


def _numbers(layer: Layer, batch: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes as float32 [N, C, H, W], int8 weights [O, C, k, k] and their scales [O]."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, layer.channels, layer.size, layer.size)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    spikes = (torch.rand(shape, generator=generator) < rate) * sign.float()
    weights = torch.randint(-127, 128, (layer.outputs, layer.channels, layer.kernel, layer.kernel), generator=generator)
    return spikes, weights.to(torch.int8), torch.rand(layer.outputs, generator=generator) / 1000 + 1e-4


def _engines(
    layer: Layer, spikes: Tensor, weights: Tensor, scales: Tensor, threads: int
) -> dict[str, Callable[[], Any]]:
    stride, padding = [layer.stride] * 2, [layer.padding] * 2
    real = weights.float() * scales.view(-1, 1, 1, 1)
    last = torch.channels_last
    spikes_last, real_last = spikes.contiguous(memory_format=last), real.contiguous(memory_format=last)
    engines: dict[str, Callable[[], Any]] = {
        BASE: lambda: F.conv2d(spikes, real, None, stride, padding),
        f"{BASE}, channels last": lambda: F.conv2d(spikes_last, real_last, None, stride, padding),
    }
    if hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        engines["oneDNN int8"] = _onednn(layer, spikes_last, weights, scales)
    if find_spec("onnx") is not None and find_spec("onnxruntime") is not None:
        for kind in ("QLinearConv", "ConvInteger"):
            engines[kind] = _onnxruntime(kind, layer, spikes, weights, scales, threads)
    return engines


def _onednn(layer: Layer, spikes_last: Tensor, weights: Tensor, scales: Tensor) -> Callable[[], Any]:
    stride, padding, dilation = [layer.stride] * 2, [layer.padding] * 2, [1, 1]
    bytes_ = (spikes_last + 1).to(torch.uint8)
    zeros = torch.zeros(layer.outputs, dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(weights, scales, 1.0, 1, stride, padding, dilation, 1, list(bytes_.shape))
    return lambda: torch.ops.onednn.qconv2d_pointwise(
        bytes_, 1.0, 1, packed, scales, zeros, None, stride, padding, dilation, 1, 1.0, 0, torch.float32, "none", [],
        "",
    )  # fmt: skip


def _onnxruntime(
    kind: str, layer: Layer, spikes: Tensor, weights: Tensor, scales: Tensor, threads: int
) -> Callable[[], Any]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    side = (layer.size + 2 * layer.padding - layer.kernel) // layer.stride + 1
    result = [len(spikes), layer.outputs, side, side]
    constants: dict[str, Tensor] = {"w": weights, "x_zero": torch.tensor(1, dtype=torch.uint8)}
    if kind == "QLinearConv":
        constants |= {
            "x_scale": torch.tensor(1.0), "w_scale": scales, "w_zero": torch.zeros(layer.outputs, dtype=torch.int8),
            "y_scale": torch.tensor(1.0), "y_zero": torch.tensor(128, dtype=torch.uint8),
        }  # fmt: skip
        inputs, output = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"], TensorProto.UINT8
    else:
        inputs, output = ["x", "w", "x_zero"], TensorProto.INT32
    node = helper.make_node(
        kind, inputs, ["y"], strides=[layer.stride] * 2, pads=[layer.padding] * 4, kernel_shape=[layer.kernel] * 2
    )
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info("x", TensorProto.UINT8, list(spikes.shape))],
        [helper.make_tensor_value_info("y", output, result)],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed = {"x": (spikes + 1).to(torch.uint8).numpy()}
    return lambda: session.run(None, fed)
