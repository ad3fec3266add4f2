"""The convolution that skips silence gives what the dense one gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_tspike.kernels import sparse

pytestmark = pytest.mark.skipif(not sparse.is_available(), reason="needs AVX512_VNNI and a C++ compiler")


@pytest.mark.parametrize(("channels", "out_channels"), [(64, 64), (128, 128), (64, 256), (192, 320)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((1, 1), (2, 2), (0, 0)),
                                                            ((5, 3), (2, 1), (2, 0))])  # fmt: skip
@pytest.mark.parametrize(("zero_point", "largest"), [(1, 2), (0, 1), (40, 80), (127, 254)])
def test_it_is_the_convolution(
    channels: int, out_channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    zero_point: int, largest: int,
) -> None:  # fmt: skip
    spikes = torch.randint(largest + 1, (2, channels, 7, 9), dtype=torch.uint8)
    x = torch.where(torch.rand(spikes.shape) < 0.2, spikes, zero_point).to(torch.uint8)
    x[0, :, 2:4] = zero_point  # rows of silence
    weight = torch.randint(-128, 128, (out_channels, channels, *kernel), dtype=torch.int8)
    scale, bias = torch.rand(out_channels), torch.randn(out_channels)
    packed = sparse.pack(weight)
    assert torch.equal(sparse.unpack(packed), weight)
    got = sparse.convolution(x, packed, scale, bias, zero_point, stride, padding)
    sums = F.conv2d(x.double() - zero_point, weight.double(), None, stride, padding)
    # whole numbers below 2^24 are exact in float32, larger ones are rounded once
    want = sums.float() * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    assert torch.equal(got, want)


def test_which_convolutions_it_takes() -> None:
    assert sparse.takes(nn.Conv2d(64, 128, 3))
    assert not sparse.takes(nn.Conv2d(64, 96, 3))
    assert not sparse.takes(nn.Conv2d(48, 64, 3))
    assert not sparse.takes(nn.Conv2d(64, 64, 3, groups=2))
    assert not sparse.takes(nn.Conv2d(64, 64, 3, dilation=2))
