"""The layers of the integer runtime: between them spikes are bytes (see :mod:`lightning_tspike.kernels.integer`).

Convolutions and linear layers are oneDNN's, called through torch: bytes times int8 weights are summed up in 32 bits, and
only the sum becomes a float32, ``scale * sum + bias`` for each output channel. So nothing is rounded except weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..files.weights import to_int8
from ..kernels import integer as kernels
from ..neurons import SpikingNeuron
from .pools import PoolOptions

__all__ = [
    "IntegerConv",
    "IntegerLinear",
    "IntegerMaxPool",
    "IntegerNeuron",
    "IntegerPool",
    "IntegerTotal",
    "IntegerWeighted",
]

_Pair = tuple[int, int]


class IntegerWeighted(nn.Module):
    """A layer with int8 weights: uint8 -> float32, ``scale * sum + bias``.

    Args:
        weight: Weights [C_out, ...] for whole numbers, to be rounded.
        bias: [C_out]; None for 0.
        zero_point: The byte that is 0.

    Attributes:
        packed: The rounded weights, as oneDNN has arranged them.
        scale: [C_out].
        bias: [C_out].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, zero_point: int) -> None:
        super().__init__()
        rounded, scale = to_int8(weight.detach().float())
        self.zero_point = zero_point
        self.scale: Tensor
        self.bias: Tensor
        self._zeros: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias.detach().float().clone())
        self.register_buffer("_zeros", torch.zeros(len(scale), dtype=torch.int64))  # zero points of the weights
        self.packed = self._pack(rounded)

    def rescale(self, scale: Tensor, shift: Tensor) -> None:
        """Give ``scale * y + shift``, of [C_out] each, where it gave y."""
        self.scale.copy_(self.scale * scale)
        self.bias.copy_(self.bias * scale + shift)

    def _pack(self, rounded: Tensor) -> Tensor:
        raise NotImplementedError

    # what oneDNN has arranged cannot be copied or pickled as it is
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": self.packed.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = self._pack(self.packed)


class IntegerConv(IntegerWeighted):
    """A convolution: uint8 [N, C, H, W] -> float32 [N, C_out, H', W'], channels last.

    Args:
        weight: As for :class:`IntegerWeighted`, [C_out, C / groups, K, K].
        conv: The convolution: everything else about it.
        padding: Rows above and below, columns to the left and right, of zeros.
        zero_point: The byte that is 0.
        size: Height and width of an example, which decide how weights are arranged.
    """

    def __init__(self, weight: Tensor, conv: nn.Conv2d, padding: _Pair, zero_point: int, size: Sequence[int]) -> None:
        self._shape = list(conv.stride), list(padding), list(conv.dilation), conv.groups
        self._example = [1, conv.in_channels, *size]
        super().__init__(weight, conv.bias, zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, self.zero_point, self.packed, self.scale, self._zeros, self.bias, *self._shape,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    def _pack(self, rounded: Tensor) -> Tensor:
        return torch.ops.onednn.qconv_prepack(rounded, self.scale, 1.0, self.zero_point, *self._shape, self._example)


class IntegerLinear(IntegerWeighted):
    """A linear layer: uint8 [N, F] -> float32 [N, F_out]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x, 1.0, self.zero_point, self.packed, self.scale, self._zeros, self.bias, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip

    def _pack(self, rounded: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(rounded, [1, rounded.shape[1]])


class _Sum(nn.Module):
    """What adds up currents: float32 tensors, or bytes.

    Args:
        scales: Of each current, its factor for each channel, [C]; None for 1.
        zero_points: Of each current, the byte that is 0.
        shift: What is added for each channel, [C]; None for 0.
    """

    def __init__(self, scales: Sequence[Tensor | None], zero_points: Sequence[int], shift: Tensor | None) -> None:
        super().__init__()
        self.zero_points = tuple(zero_points)
        for i, scale in enumerate(scales):
            self.register_buffer(f"scale{i}", None if scale is None else kernels.repeated(scale))
        self.shift: Tensor | None
        self.register_buffer("shift", None if shift is None else kernels.repeated(shift))

    def _currents(self, xs: Sequence[Tensor]) -> list[kernels.Current]:
        return [
            kernels.Current(x, getattr(self, f"scale{i}"), zero_point)
            for i, (x, zero_point) in enumerate(zip(xs, self.zero_points, strict=True))
        ]


class IntegerTotal(_Sum):
    """The sum of some currents, each [N, C, ...], as float32."""

    def forward(self, *xs: Tensor) -> Tensor:
        return kernels.total(self._currents(xs), self.shift)


class IntegerNeuron(_Sum):
    """Ternary or binary neurons on the sum of some currents: each [T*B, C, ...] -> spikes as bytes, [T*B, C, ...].

    Args:
        neuron: The neurons; what they emit is without amplitude here.
        channels: Number of channels C.
        currents: As for the base class.
    """

    def __init__(self, neuron: SpikingNeuron, channels: int, *currents: Any) -> None:
        super().__init__(*currents)
        self.neuron = neuron
        self.threshold: Tensor
        theta = neuron.firing_threshold.detach().float().expand(channels)
        self.register_buffer("threshold", kernels.repeated(theta), persistent=False)
        self._options: dict[str, Any] = {
            "decay": float(neuron.decay), "reset": neuron.reset, "is_ternary": neuron.is_ternary
        }  # fmt: skip

    def forward(self, *xs: Tensor) -> Tensor:
        neuron = self.neuron
        return kernels.neuron(
            self._currents(xs), self.threshold, neuron.timesteps, shift=self.shift, static_input=neuron.static_input,
            **self._options,
        )[0]  # fmt: skip

    def step(self, memory: Tensor, *xs: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: tau * v of the step before [B, C, ...] and currents [B, C, ...] -> spikes, tau * v."""
        spikes, left = kernels.neuron(
            self._currents(xs), self.threshold, 1, shift=self.shift, past=memory, keep=True, **self._options
        )
        assert left is not None
        return spikes, left


class IntegerMaxPool(nn.Module):
    """Largest byte of each window: uint8 [N, C, H, W] -> [N, C, H', W'].

    Args:
        options: Of the pool.
    """

    def __init__(self, options: PoolOptions) -> None:
        super().__init__()
        assert options.window is not None
        kernel, stride, padding = options.window
        self._options = list(kernel), list(stride), list(padding), list(options.dilation), options.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.max_pool2d(x, *self._options)


class IntegerPool(nn.Module):
    """An average pool of bytes, see :func:`lightning_tspike.kernels.integer.pool`.

    Args:
        window: Kernel, stride and padding; None for a window that is the whole map.
        zero_point: The byte that is 0.
        scale: Factor of the sum, of a whole map that of its mean; None for a sum as bytes.
    """

    def __init__(self, window: tuple[_Pair, _Pair, _Pair] | None, zero_point: int, scale: float | None) -> None:
        super().__init__()
        self.window, self.zero_point, self.scale = window, zero_point, scale

    def forward(self, x: Tensor) -> Tensor:
        size: Any = tuple(x.shape[2:])
        window, scale = self.window, self.scale
        if window is None:
            assert scale is not None
            window, scale = (size, size, (0, 0)), scale / (size[0] * size[1])
        return kernels.pool(x, *window, zero_point=self.zero_point, scale=scale)
