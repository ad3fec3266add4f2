"""Feature maps of spiking networks: our backbones and timm's models, as lists by level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_tspike.folding import FoldError, fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork, ternarize

T, B = 3, 2


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("tspike_resnet_small", {}),
        ("tspike_ms_resnet_small", {"feature_cls": "getter"}),
        ("tspike_vgg_small", {"out_indices": (0, 2)}),
        ("test_resnet", {"feature_cls": "dict"}),
        ("test_byobnet", {"out_indices": (0, 2)}),
    ],
)
def test_features_only(name: str, kwargs: dict[str, Any]) -> None:
    network = ternarize(timm.create_model(name, features_only=True, **kwargs), T).eval()
    x = torch.randn(B, 3, 32, 32)
    info: Any = network.model.feature_info
    steps = network(x, per_step=True)
    maps, repeated = network(x), network(x[:, None].repeat(1, T, 1, 1, 1))  # the same image as frames
    assert type(maps) is type(steps) is (dict if kwargs.get("feature_cls") == "dict" else list)
    if isinstance(maps, dict):
        assert list(maps) == list(steps) == list(repeated)
        steps, maps, repeated = (list(d.values()) for d in (steps, maps, repeated))
    sizes = [(c, 32 // r, 32 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)]
    assert [m.shape for m in maps] == [(B, *size) for size in sizes]
    assert [s.shape for s in steps] == [(T, B, *size) for size in sizes]
    torch.testing.assert_close([s.mean(0) for s in steps], maps)
    torch.testing.assert_close(repeated, maps)
    assert all(m.any() for m in maps)


def test_features_only_by_configuration() -> None:
    config = NetworkConfig("tspike_resnet_small", backbone_kwargs={"features_only": True, "out_indices": [1, 3]})
    maps = create_network(config)(torch.randn(B, 3, 16, 16))
    assert [m.shape for m in maps] == [(B, 16, 16, 16), (B, 64, 4, 4)]
    with pytest.raises(FoldError, match="gives a list, not logits: fold the whole network first"):
        fold(create_network(config))


@pytest.mark.parametrize(
    ("name", "kwargs", "memory"),
    [
        ("tspike_resnet_small", {}, "full"),
        ("tspike_sew_resnet_small", {}, "packed"),
        ("tspike_ms_resnet_small", {}, "lean"),
        ("test_resnet", {}, "full"),
        # the first level comes before any neuron, which sees a still image once
        ("resnetv2_50", {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}, "full"),
    ],
)
def test_intermediates(name: str, kwargs: dict[str, Any], memory: Any) -> None:
    network = ternarize(timm.create_model(name, num_classes=4, **kwargs), T).eval()
    network.memory = memory
    x = torch.randn(B, 3, 32, 32)
    end, maps = network.forward_intermediates(x)
    assert [m.shape[:2] for m in maps] == [(B, level["num_chs"]) for level in network.model.feature_info]
    _, steps = network.forward_intermediates(x, per_step=True)
    torch.testing.assert_close([s.mean(0) for s in steps], maps)
    _, repeated = network.forward_intermediates(x[:, None].repeat(1, T, 1, 1, 1))
    torch.testing.assert_close(repeated, maps)
    last = network.forward_intermediates(x, indices=1, intermediates_only=True, per_step=True)
    torch.testing.assert_close(last, steps[-1:])
    pooled = network.model.forward_head(end)  # linear: the mean over time before or after is the same
    torch.testing.assert_close(pooled, network(x))
    maps[-1].square().sum().backward()
    assert next(network.model.parameters()).grad.any()


def test_folded_maps_are_divided_by_amplitudes(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small", num_classes=4, timesteps=T)
    x = torch.randn(B, 3, 16, 16, dtype=torch.float64)
    folded, _ = fold(network, x)
    for ours, theirs in zip(folded.forward_intermediates(x)[1], network.forward_intermediates(x)[1], strict=True):
        ratio = theirs[ours != 0] / ours[ours != 0]
        assert (theirs[ours == 0] == 0).all()
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


class Mixing(nn.Module):
    """Gives one row less than it gets: images are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x)).mean((2, 3))[1:]


def test_what_does_not_fit_is_refused() -> None:
    network = ternarize(Mixing(), T)
    with pytest.raises(ValueError, match=r"shape \(5, 4\) for 3 time steps of 2 images; expected .* 6 in all"):
        network(torch.randn(B, 3, 8, 8))
    with pytest.raises(ValueError, match="Mixing has no forward_intermediates.*features_only=True"):
        network.forward_intermediates(torch.randn(B, 3, 8, 8))
