"""The layers of the integer runtime: between them spikes are bytes (see :mod:`lightning_tspike.kernels.integer`).

Convolutions and linear layers are oneDNN's, called through torch: bytes times int8 weights are summed up in 32 bits,
and only the sum becomes a float32, ``scale * sum + bias`` for each output channel. So weights are all that is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.weights import to_int8
from ..kernels import integer as kernels
from ..kernels import sparse
from ..neurons import SpikingNeuron
from .pools import PoolOptions

__all__ = [
    "LARGEST_BYTE",
    "IntegerConv",
    "IntegerHead",
    "IntegerLinear",
    "IntegerMaxPool",
    "IntegerNeuron",
    "IntegerPool",
    "IntegerSameSize",
    "IntegerTotal",
    "IntegerWeighted",
]

LARGEST_BYTE = 129
"""That layers with weights read: without VNNI, processors add up two products in 16 bits, and 2 * 129 * 127 fits."""

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

    def _unpack(self) -> Tensor:
        return self.packed.to_dense()

    # what oneDNN has arranged cannot be copied or pickled as it is
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": self._unpack()}

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
        largest: The greatest absolute value of the whole numbers that it reads.
        size: Height and width of an example, which decide how weights are arranged.

    Attributes:
        is_sparse: Whether it runs on the kernel that skips silence (:mod:`lightning_tspike.kernels.sparse`), with the
            same result; :meth:`become_sparse`.
        can_be_sparse: Whether there is one for it.
    """

    def __init__(
        self, weight: Tensor, conv: nn.Conv2d, padding: _Pair, zero_point: int, largest: int, size: Sequence[int]
    ) -> None:
        self._shape = list(conv.stride), list(padding), list(conv.dilation), conv.groups
        self._kernel = list(conv.kernel_size)
        self._example = [1, conv.in_channels, *size]
        self.can_be_sparse = sparse.takes(conv) and largest <= sparse.LARGEST
        self.is_sparse = False
        super().__init__(weight, conv.bias, zero_point)

    def become_sparse(self) -> None:
        """Run on the kernel that skips silence from now on."""
        weights = self._unpack()
        self.is_sparse = True
        self.packed = self._pack(weights)

    def forward(self, x: Tensor) -> Tensor:
        run: Any
        if torch.compiler.is_compiling():
            run = _sparse_operator if self.is_sparse else _conv_operator
        else:
            run = _sparse if self.is_sparse else _conv
        return run(x, self.packed, self.scale, self._zeros, self.bias, self.zero_point, *self._shape, self._kernel)

    def _pack(self, rounded: Tensor) -> Tensor:
        if self.is_sparse:
            return sparse.pack(rounded)
        return torch.ops.onednn.qconv_prepack(rounded, self.scale, 1.0, self.zero_point, *self._shape, self._example)

    def _unpack(self) -> Tensor:
        return sparse.unpack(self.packed) if self.is_sparse else super()._unpack()


class IntegerLinear(IntegerWeighted):
    """A linear layer: uint8 [N, F] -> float32 [N, F_out]."""

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.zero_point, 1.0)

    def _multiply(self, x: Tensor, zero_point: int, x_scale: float) -> Tensor:
        run = _linear_operator if torch.compiler.is_compiling() else _linear
        return run(x, self.packed, self.scale, self._zeros, self.bias, zero_point, x_scale)

    def _pack(self, rounded: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(rounded, [1, rounded.shape[1]])

    def _unpack(self) -> Tensor:
        return self.packed.to_dense().t().contiguous()  # oneDNN has it as [F, F_out]


class IntegerHead(IntegerLinear):
    """A linear layer on the means of maps: uint8 [N, C, H, W] -> float32 [N, K].

    Args:
        weight: As for :class:`IntegerWeighted`.
        bias: As for :class:`IntegerWeighted`.
        zero_point: The byte that is 0.
        largest: The largest byte there can be.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, zero_point: int, largest: int) -> None:
        super().__init__(weight, bias, zero_point)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        size = height * width
        window = (height, width), (1, 1), (0, 0)
        if size * self.largest <= LARGEST_BYTE:
            sums = kernels.pool(x, *window, zero_point=self.zero_point)
            return self._multiply(sums.flatten(1), size * self.zero_point, 1 / size)
        means = kernels.pool(x, *window, zero_point=self.zero_point, scale=1 / size)  # of large maps: in float32
        return F.linear(means.flatten(1), self._unpack().float() * self.scale[:, None], self.bias)


def _conv(
    x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, zero_point: int, stride: list[int],
    padding: list[int], dilation: list[int], groups: int, kernel: list[int],
) -> Tensor:  # fmt: skip
    return torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, zero_point, packed, scale, zeros, bias, stride, padding, dilation, groups, 1.0, 0, torch.float32,
        "none", [], "",
    )  # fmt: skip


def _sparse(
    x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, zero_point: int, stride: list[int],
    padding: list[int], dilation: list[int], groups: int, kernel: list[int],
) -> Tensor:  # fmt: skip
    stride_pair, padding_pair = (stride[0], stride[1]), (padding[0], padding[1])
    return sparse.convolution(x, packed, scale, bias, zero_point, stride_pair, padding_pair)


def _linear(
    x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, zero_point: int, x_scale: float
) -> Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        x, x_scale, zero_point, packed, scale, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )


# torch.compile has rules of its own for oneDNN's layers, which take no weights from modules: it gets them in our name
_conv_operator = torch.library.custom_op("lightning_tspike::integer_conv", _conv, mutates_args=())
_sparse_operator = torch.library.custom_op("lightning_tspike::sparse_conv", _sparse, mutates_args=())
_linear_operator = torch.library.custom_op("lightning_tspike::integer_linear", _linear, mutates_args=())


@_conv_operator.register_fake
@_sparse_operator.register_fake
def _(
    x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, zero_point: int, stride: list[int],
    padding: list[int], dilation: list[int], groups: int, kernel: list[int],
) -> Tensor:  # fmt: skip
    shapes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in shapes]
    return x.new_empty((x.shape[0], scale.shape[0], *size), dtype=torch.float32).contiguous(
        memory_format=torch.channels_last
    )


@_linear_operator.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, bias: Tensor, zero_point: int, x_scale: float) -> Tensor:
    return x.new_empty((x.shape[0], scale.shape[0]), dtype=torch.float32)


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
            "decay": float(neuron.decay), "reset": neuron.reset, "is_ternary": neuron.is_ternary,
            "levels": neuron.levels,
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
        is_whole: Whether it is right only for maps that are as large as some windows.
    """

    def __init__(
        self, window: tuple[_Pair, _Pair, _Pair] | None, zero_point: int, scale: float | None, *, is_whole: bool = False
    ) -> None:
        super().__init__()
        self.window, self.zero_point, self.scale, self.is_whole = window, zero_point, scale, is_whole

    def forward(self, x: Tensor) -> Tensor:
        size: Any = tuple(x.shape[2:])
        window, scale = self.window, self.scale
        if window is None:
            assert scale is not None
            window, scale = (size, size, (0, 0)), scale / (size[0] * size[1])
        elif self.is_whole and any((n + 2 * p - k) % s for n, k, s, p in zip(size, *window, strict=True)):
            raise ValueError(
                f"an average pool here meets maps of {size[0]} x {size[1]}, which its windows do not divide: the "
                "integer runtime takes images of which they divide every map, as those of the network's input_size"
            )
        return kernels.pool(x, *window, zero_point=self.zero_point, scale=scale)


class IntegerSameSize(nn.Module):
    """An adaptive average pool that changes nothing: uint8 [N, C, H, W] -> the same.

    Args:
        size: H and W.
    """

    def __init__(self, size: _Pair) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"an adaptive pool here meets maps of {x.shape[2]} x {x.shape[3]} instead of {self.size[0]} x "
                f"{self.size[1]}: the integer runtime takes images of the network's input_size alone here"
            )
        return x
