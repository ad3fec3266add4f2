"""Layers with int8 weights for exported files: whole numbers in, integer products and sums, one factor a channel.

A folded network's spikes are whole numbers, so a convolution or linear layer behind them needs no floating-point
products. Its weights are rounded as the int8 files of :mod:`lightning_tspike.files.weights` have them, q * scale with
one scale for each output channel, and that is the only rounding: sum(q * spike) is a whole number.

ONNX has QDQ for such layers (QuantizeLinear, DequantizeLinear around a Conv), but ONNX Runtime turns that into integer
work only where the result is quantised as well, which would round membrane potentials to 8 bits. So the integer
operation stands in the file itself: QuantizeLinear (scale 1, exact), ConvInteger or MatMulInteger, DequantizeLinear by
the weights' scales, Add of the bias. Its weights are written as uint8 around 128: with signed ones ONNX Runtime 1.32
takes a path several times slower on x86.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.weights import to_int8
from .whole_numbers import Bounds

__all__ = ["RoundedConv", "RoundedLinear", "can_round", "round_layers"]

_ZERO = 128  # of the weights as uint8

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def can_round(layer: nn.Module, bounds: Bounds) -> bool:
    """Whether a layer that reads whole numbers within these bounds has an int8 form here: they fit into a byte."""
    is_known = type(layer) is nn.Linear or (
        type(layer) in _CONVOLUTIONS and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )
    low, high = bounds
    return is_known and low <= 0 <= high and high - low <= 255


def round_layers(model: nn.Module, inputs: Mapping[str, Bounds], *, as_onnx: bool) -> tuple[str, ...]:
    """Put layers with int8 weights in the place of those that read whole numbers, in place.

    Args:
        model: The model.
        inputs: From :func:`lightning_tspike.inference.whole_numbers.whole_number_inputs`.
        as_onnx: Whether they are to be ONNX's operators, which only torch.onnx.export understands; otherwise they
            compute in float32 with the rounded weights.

    Returns:
        Names of the layers.
    """
    rounded = tuple(name for name, bounds in inputs.items() if can_round(model.get_submodule(name), bounds))
    for name in rounded:
        layer = model.get_submodule(name)
        kind = RoundedLinear if isinstance(layer, nn.Linear) else RoundedConv
        model.set_submodule(name, kind(layer, inputs[name], as_onnx=as_onnx))
    return rounded


class _Rounded(nn.Module):
    """A layer with int8 weights.

    Args:
        layer: The float32 layer.
        bounds: Of the whole numbers it reads.
        as_onnx: As for :func:`round_layers`.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    one: Tensor
    zero: Tensor
    weight_zero: Tensor

    def __init__(self, layer: Any, bounds: Bounds, *, as_onnx: bool) -> None:
        super().__init__()
        weight, scale = to_int8(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)  # [out]
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.as_onnx = as_onnx
        if as_onnx:
            self.weight = (self.weight.to(torch.int16) + _ZERO).to(torch.uint8)
            self.register_buffer("weight_zero", torch.tensor(_ZERO, dtype=torch.uint8))
            self.register_buffer("one", torch.tensor(1.0))
            self.register_buffer("zero", torch.tensor(-bounds[0], dtype=torch.uint8))  # what stands for no spike

    def forward(self, x: Tensor) -> Tensor:
        if not self.as_onnx:
            weight = self.weight.float() * self.scale.view(-1, *[1] * (self.weight.ndim - 1))
            return self.compute(x, weight, self.bias)
        # a shape needs no values: what it is read from does not get into the file
        shape = self.compute(x, torch.empty(self.weight.shape), None).shape
        quantized = _onnx("QuantizeLinear", (x, self.one, self.zero), torch.uint8, x.shape)
        operator, weight, attributes, axis = self.integer_operator()
        sums = _onnx(operator, (quantized, weight, self.zero, self.weight_zero), torch.int32, shape, attributes)
        y = _onnx("DequantizeLinear", (sums, self.scale), torch.float32, shape, {"axis": axis})
        return y if self.bias is None else y + self.bias.view(-1, *[1] * (y.ndim - axis - 1 if axis > 0 else 0))

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer does, in floating point."""
        raise NotImplementedError

    def integer_operator(self) -> tuple[str, Tensor, dict[str, Any], int]:
        """ONNX's operator, the weights as it takes them, its attributes, and the dimension of output channels."""
        raise NotImplementedError


class RoundedConv(_Rounded):
    """A convolution with int8 weights."""

    def __init__(self, layer: Any, bounds: Bounds, *, as_onnx: bool) -> None:
        super().__init__(layer, bounds, as_onnx=as_onnx)
        self.convolve = _CONVOLUTIONS[type(layer)]
        self.options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.groups = layer.groups

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.convolve(x, weight, bias, **self.options, groups=self.groups)

    def integer_operator(self) -> tuple[str, Tensor, dict[str, Any], int]:
        attributes = {
            "kernel_shape": list(self.weight.shape[2:]),
            "strides": list(self.options["stride"]),
            "pads": [*self.options["padding"], *self.options["padding"]],
            "dilations": list(self.options["dilation"]),
            "group": self.groups,
        }
        return "ConvInteger", self.weight, attributes, 1


class RoundedLinear(_Rounded):
    """A linear layer with int8 weights."""

    weight_t: Tensor

    def __init__(self, layer: Any, bounds: Bounds, *, as_onnx: bool) -> None:
        super().__init__(layer, bounds, as_onnx=as_onnx)
        if as_onnx:
            self.register_buffer("weight_t", self.weight.t().contiguous())  # as MatMulInteger takes it

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def integer_operator(self) -> tuple[str, Tensor, dict[str, Any], int]:
        return "MatMulInteger", self.weight_t, {}, -1


def _onnx(
    operator: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    return torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=shape)
