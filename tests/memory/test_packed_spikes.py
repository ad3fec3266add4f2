"""Packed spikes: what was packed comes back, bit for bit."""

from __future__ import annotations

import pytest
import torch

from lightning_tspike.memory.packed import PackedSpikes


@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3), (2, 5, 3, 3), (2, 3, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_packed_spikes_come_back_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype, per_channel: bool) -> None:
    if per_channel and len(shape) < 2:
        pytest.skip("a vector has no channels")
    amplitude = torch.rand(shape[1] if per_channel else ()) + 0.1
    a = amplitude.to(dtype).view(-1, *[1] * (len(shape) - 2)) if per_channel else amplitude.to(dtype)
    spikes = torch.randint(-1, 2, shape).to(dtype) * a
    if spikes.ndim == 4:
        spikes = spikes.contiguous(memory_format=torch.channels_last)
    packed = PackedSpikes(spikes, amplitude)
    again = packed.unpack()
    assert torch.equal(again, spikes)
    assert again.dtype == dtype
    assert again.stride() == spikes.stride()
    assert packed.codes.numel() == -(-spikes.numel() // 4)
    assert packed.codes.dtype == torch.uint8


@pytest.mark.parametrize(("levels", "per_byte"), [(1, 4), (2, 2), (7, 2), (8, 1), (127, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_packed_levels_come_back_bit_for_bit(levels: int, per_byte: int, dtype: torch.dtype) -> None:
    amplitude = torch.rand(3) + 0.1
    s = torch.randint(-levels, levels + 1, (2, 3, 5, 7)).to(memory_format=torch.channels_last)
    a = amplitude.view(-1, 1, 1).to(torch.promote_types(dtype, torch.float32))
    spikes = (s * a).to(dtype)  # as a neuron rounds them
    packed = PackedSpikes(spikes, amplitude, levels)
    assert torch.equal(packed.unpack(), spikes)
    assert packed.unpack().stride() == spikes.stride()
    assert packed.codes.numel() == -(-spikes.numel() // per_byte)
    silent = PackedSpikes(0 * spikes, 0 * amplitude, levels)
    assert silent.unpack().count_nonzero() == 0
