"""Every backbone of our own, by its name in timm's registry: runs, learns, folds, exports."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch

from lightning_tspike.fold import fold
from lightning_tspike.models import NetworkConfig, create_network
from lightning_tspike.ternarize import SpikingNetwork

NAMES = timm.list_models("tspike_*")
SHALLOW = {"layers": [1, 1, 1, 1], "widths": [8, 8, 16, 16]}
DEEP = ("tspike_ms_resnet104", "tspike_sew_resnet50", "tspike_sew_resnet101", "tspike_sew_resnet152")


def narrow(name: str) -> dict[str, object]:
    """The same network with fewer and narrower stages, so that tests of all of them take seconds."""
    if name.endswith("small"):
        return {}
    if "vgg" in name:
        return {"widths": [8, 8, 16, 16, 16]}
    return SHALLOW if name in DEEP else {"widths": [8, 12, 16, 16][: len(_stages(name))]}


def _stages(name: str) -> torch.nn.Sequential:
    with torch.device("meta"):
        return timm.create_model(name).stages


def test_all_families_are_registered() -> None:
    assert set(NAMES) == {
        *(f"tspike_resnet{name}" for name in ("18", "34", "19", "20", "20_cifar", "_small")),
        *(f"tspike_vgg{name}" for name in ("11", "13", "16", "_small")),
        *(f"tspike_sew_resnet{name}" for name in ("18", "34", "50", "101", "152", "_small")),
        *(f"tspike_ms_resnet{name}" for name in ("18", "34", "104", "_small")),
    }


@pytest.mark.parametrize("name", NAMES)
def test_runs_learns_folds_and_exports(lively: Callable[..., SpikingNetwork], name: str) -> None:
    kwargs = narrow(name)
    network = lively(name, num_classes=5, timesteps=2, in_chans=2, backbone_kwargs=kwargs)
    x = torch.randn(2, 2, 32, 32, dtype=torch.float64)
    network.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    assert network.trace(x)
    folded, report = fold(network, x)
    assert not report.kept
    assert (folded(x) - network(x)).abs().max() <= 1e-9 * network(x).abs().max()
    exported = torch.export.export(folded, (x,))
    torch.testing.assert_close(exported.module()(x), folded(x))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # what the published code's networks have, and what the papers of the others say of their ANN counterparts
        ("tspike_resnet18", 11_689_512), ("tspike_resnet34", 21_797_672), ("tspike_resnet19", 12_569_226),
        ("tspike_resnet20", 11_247_946), ("tspike_resnet20_cifar", 17_289_866), ("tspike_resnet_small", 78_042),
        ("tspike_sew_resnet50", 25_557_032), ("tspike_ms_resnet18", 11_689_512),
    ],
)  # fmt: skip
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == parameters


@pytest.mark.parametrize("connect", ["AND", "IAND"])
def test_products_of_spikes_are_kept_and_exact(lively: Callable[..., SpikingNetwork], connect: str) -> None:
    network = lively("tspike_sew_resnet_small", num_classes=5, timesteps=2, backbone_kwargs={"connect": connect})
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    folded, report = fold(network, x)
    assert (folded(x) - network(x)).abs().max() <= 1e-9 * network(x).abs().max()
    assert 0 < len(report.kept) < len(report.neurons)


@pytest.mark.parametrize(
    ("connect", "allowed"), [("ADD", {-2, -1, 0, 1, 2}), ("AND", {-1, 0, 1}), ("IAND", {-1, 0, 1})]
)
def test_what_connect_functions_send(connect: str, allowed: set[int]) -> None:
    config = {"timesteps": 2, "amplitude": "fixed", "backbone_kwargs": {"connect": connect}}
    network = create_network(NetworkConfig("tspike_sew_resnet_small", **config))
    seen = []
    network.model.stages[0][0].register_forward_hook(lambda _m, _a, out: seen.append(set(out.unique().tolist())))
    network(torch.randn(8, 3, 16, 16))
    assert seen[0] <= allowed
    assert len(seen[0]) >= 3


def test_iand_lets_the_shortcut_pass_where_the_block_is_silent() -> None:
    block = timm.create_model("tspike_sew_resnet_small", connect="IAND").stages[0][0]
    a, s = torch.tensor([0.0, 1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    block.body, block.downsample = torch.nn.Identity(), torch.nn.Identity()
    block.downsample.forward = lambda _x: s
    assert block(a).tolist() == [1, 0, 0, -1]


def test_small_networks_reset_their_head_and_take_other_images() -> None:
    for name in NAMES:
        if name.endswith("small"):
            model = timm.create_model(name, num_classes=3, in_chans=1)
            assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)
            model.reset_classifier(0)
            assert model(torch.randn(2, 1, 16, 16)).shape == (2, model.num_features)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("tspike_resnet_small", {"layers": [1], "widths": [8, 8]}, "one number per stage"),
        ("tspike_resnet_small", {"stem": "big"}, "stem must be .* 'big'"),
        ("tspike_resnet_small", {"shortcut": "max"}, "shortcut must be .* 'max'"),
        ("tspike_vgg11", {"pool": "min"}, "pool must be .* 'min'"),
        ("tspike_sew_resnet18", {"connect": "OR"}, "connect must be .* 'OR'"),
    ],
)
def test_bad_arguments(name: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_network(NetworkConfig(name, backbone_kwargs=kwargs))


def test_close_names() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'tspike_resnet21'; did you mean .*'tspike_resnet20'"):
        create_network(NetworkConfig("tspike_resnet21"))
