"""Every backbone of our own, by its name in timm's registry: runs, learns, folds, exports."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import FeatureInfo, group_parameters
from timm.optim import param_groups_weight_decay
from torch import Tensor

from lightning_tspike.analysis.spikes import firing_rates
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork

NAMES = timm.list_models("tspike_*")
SMALL = [name for name in NAMES if name.endswith("small")]
RESIDUAL_SMALL = [name for name in SMALL if "vgg" not in name and "fast" not in name]
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
        *(f"tspike_max_resnet{name}" for name in ("18", "_small")),
        *(f"tspike_fast_resnet{name}" for name in ("", "_small")),
    }


# those of 34 layers and more are the same with more blocks
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name.endswith(("34", "101", "152")) else []) for name in NAMES],
)
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
        ("tspike_fast_resnet", 1_965_722), ("tspike_max_resnet18", 12_502_090),
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


def test_max_resnet_halves_images_by_pools_behind_norms() -> None:
    """As the public code's network: its stem, and what the first block of a stage computes, with ReLU."""
    model = timm.create_model("tspike_max_resnet18").eval()
    assert (model.conv1.in_channels, model.conv1.out_channels) == (3, 64)
    first, second = model.stages[1][:2]
    assert isinstance(model.stages[0][0].pool, torch.nn.Identity)
    assert isinstance(second.pool, torch.nn.Identity)
    x = torch.randn(2, 128, 12, 12)
    convolved = F.conv2d(x.relu(), first.conv1.weight, padding=1)
    pooled = F.max_pool2d(first.bn1(convolved), 3, stride=2, padding=1)
    shortcut = first.downsample[1](F.conv2d(x, first.downsample[0].weight, stride=2))  # of what is no spikes
    expected = first.bn2(F.conv2d(pooled.relu(), first.conv2.weight, padding=1)) + shortcut
    torch.testing.assert_close(first(x), expected)
    bound = 1 / (9 * 256) ** 0.5  # torch's own start
    assert 0.99 * bound < second.conv1.weight.abs().max() <= bound
    wide = timm.create_model("tspike_max_resnet_small", widths=(8, 16), layers=(1, 1), stem_width=5)
    assert wide.conv1.out_channels == 5


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
        ("tspike_sew_resnet_small", {"connect": "AND", "drop_path_rate": 0.1}, "drop_path_rate needs connect='ADD'"),
        ("tspike_vgg11", {"drop_path_rate": 0.1}, "does not take .*'drop_path_rate'"),
        ("tspike_resnet_small", {"drop_path_rate": 1.0}, "drop_path_rate must be .* less than 1, got 1.0"),
        ("tspike_vgg_small", {"drop_rate": float("nan")}, "drop_rate must be .* got nan"),
        ("tspike_resnet18", {"output_stride": 2}, "output_stride must be a power of 2 of at least 4, .* got 2"),
        ("tspike_resnet_small", {"output_stride": 3}, "output_stride must be a power of 2 .* got 3"),
        ("tspike_max_resnet_small", {"output_stride": 1}, "output_stride must be larger: one stage can dilate"),
        ("tspike_vgg_small", {"norm_layer": "norm"}, "norm_layer must be .* got 'norm'"),
        ("tspike_resnet_small", {"act_layer": "act"}, "act_layer must be .* got 'act'"),
        ("tspike_resnet_small", {"global_pool": "min"}, "global_pool must be one of .* got 'min'"),
        ("tspike_resnet_small", {"global_pool": ""}, "without global_pool .* num_classes must be 0, got 1000"),
    ],
)
def test_bad_arguments(name: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_network(NetworkConfig(name, backbone_kwargs=kwargs))


def test_close_names() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'tspike_resnet21'; did you mean .*'tspike_resnet20'"):
        create_network(NetworkConfig("tspike_resnet21"))


@pytest.mark.parametrize("name", NAMES)
def test_pools_and_sizes_are_what_the_configuration_says(name: str) -> None:
    with torch.device("meta"):  # shapes only: the whole network at its own size takes no time
        model = timm.create_model(name).eval()
        cfg, images = model.default_cfg, torch.empty(2, *model.default_cfg["input_size"])
        features = model.forward_features(images)
        assert features.shape == (2, model.num_features, *cfg["pool_size"])
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        weights = model.state_dict()
        assert f"{cfg['first_conv']}.weight" in weights
        assert f"{cfg['classifier']}.weight" in weights
        assert model.get_classifier() is model.get_submodule(model.get_classifier(name_only=True))
        assert timm.create_model(name, num_classes=0, global_pool="")(images).shape == features.shape


@pytest.mark.parametrize("name", NAMES)
def test_levels_of_features(name: str) -> None:
    x = torch.randn(2, 3, 32, 32)

    def create(**kwargs: object) -> torch.nn.Module:
        torch.manual_seed(1)  # the same weights each time
        return timm.create_model(name, **narrow(name), **kwargs).eval()

    model = create()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        end, maps = model.forward_intermediates(x)
        torch.testing.assert_close(end, model.forward_features(x))
        assert len(maps) >= 3
        for level, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
            side = 31 // reduction if "fast" in name else ceil(32 / reduction)  # its first convolution is not padded
            assert level.shape == (2, channels, side, side)
        for feature_cls in ("list", "dict", "hook", "getter"):
            network = create(features_only=True, feature_cls=feature_cls)
            got = network(x)
            torch.testing.assert_close(list(got.values()) if isinstance(got, dict) else got, maps)
            assert network.feature_info.channels() == info.channels()
        two = create(features_only=True, out_indices=(0, 2))
        torch.testing.assert_close(two(x), [maps[0], maps[2]])
        stopped, last = model.forward_intermediates(x, indices=[1], stop_early=True)
        assert torch.equal(stopped, maps[1])
        assert torch.equal(last[0], maps[1])
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        torch.testing.assert_close(model.forward_intermediates(x, intermediates_only=True), maps[:2])
        assert len(model.feature_info) == 2
        assert model(x).shape[1] == model.num_features == info.channels()[1]


def test_last_level_as_the_head_gets_it() -> None:
    model = timm.create_model("tspike_ms_resnet_small").eval()
    x = torch.randn(2, 3, 16, 16)
    end, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(maps[-1], end)
    assert not torch.equal(model.forward_intermediates(x)[1][-1], end)  # membrane inputs
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize("name", SMALL)
def test_heads(name: str) -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    model = timm.create_model(name, global_pool="catavgmax", num_classes=4).double().eval()
    features = model.forward_features(x)
    both = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), both)
    torch.testing.assert_close(model(x), model.fc(both))
    model.reset_classifier(7)  # the pooling, the dtype stay
    assert model.head_hidden_size == 2 * model.num_features == model.fc.in_features
    assert model(x).shape == (2, 7)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(x), features.mean((2, 3)))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(3, "max")
    torch.testing.assert_close(model(x), model.fc(features.amax((2, 3))))


@pytest.mark.parametrize("name", SMALL)
def test_options_learn_and_fold(lively: Callable[..., SpikingNetwork], name: str) -> None:
    kwargs = {"drop_rate": 0.2, "norm_layer": "groupnorm1", "act_layer": "silu", "global_pool": "avgmax"}
    if name in RESIDUAL_SMALL:
        kwargs |= {"drop_path_rate": 0.3, "output_stride": 2}
    network = lively(name, num_classes=5, timesteps=2, backbone_kwargs=kwargs)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    network.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not torch.equal(network(x), network(x))
    assert any(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    network.eval()
    folded, _ = fold(network, x)
    assert (folded(x) - network(x)).abs().max() <= 1e-9 * network(x).abs().max()


@pytest.mark.parametrize("name", RESIDUAL_SMALL)
def test_blocks_left_out_give_their_shortcut(name: str) -> None:
    model = timm.create_model(name, drop_path_rate=0.5, act_layer=torch.nn.Identity).train()
    assert [module.drop_prob for module in model.modules() if isinstance(module, DropPath)] == [0.25, 0.5]
    block = model.stages[-1][-1]
    x = torch.randn(64, 32, 8, 8)
    is_shortcut = (block(x) - block.downsample(x)).abs().amax((1, 2, 3)) < 1e-6
    assert 10 < is_shortcut.sum() < 54


@pytest.mark.parametrize(
    ("name", "output_stride", "kwargs"),
    [
        ("tspike_resnet_small", 1, {}),
        ("tspike_resnet_small", 2, {"shortcut": "avg"}),
        ("tspike_ms_resnet_small", 1, {}),
        ("tspike_max_resnet_small", 2, {}),
        ("tspike_sew_resnet_small", 1, {}),
        ("tspike_sew_resnet_small", 1, {"bottleneck": True}),
    ],
)
def test_dilation_computes_what_strides_skip(name: str, output_stride: int, kwargs: dict[str, object]) -> None:
    kwargs = {"layers": [1, 2, 2], **kwargs}
    x = torch.randn(2, 3, 16, 16)
    strided = timm.create_model(name, **kwargs).eval()
    dilated = timm.create_model(name, output_stride=output_stride, **kwargs).eval()
    dilated.load_state_dict(strided.state_dict())
    assert dilated.feature_info[-1]["reduction"] == output_stride
    with torch.no_grad():
        for dense, sparse in zip(dilated.forward_intermediates(x)[1], strided.forward_intermediates(x)[1], strict=True):
            step = dense.shape[-1] // sparse.shape[-1]
            torch.testing.assert_close(dense[..., ::step, ::step], sparse)
    assert dense.shape[-1] == 16 // output_stride


@pytest.mark.parametrize("name", SMALL)
def test_checkpointed_gradients_are_the_same(name: str) -> None:
    network = create_network(NetworkConfig(name, num_classes=5, timesteps=2))
    x = torch.randn(4, 3, 16, 16)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        network(x).square().sum().backward()
        return [p.grad.clone() for p in network.parameters()]

    kept = gradients()
    saved: list[int] = []

    def bytes_saved() -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            network(x)
        return sum(saved)

    before = bytes_saved()
    network.model.set_grad_checkpointing()
    assert bytes_saved() < before
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(), strict=True))
    _, maps = network.model.forward_intermediates(network.fold_time(x))
    network.model.set_grad_checkpointing(False)
    torch.testing.assert_close(maps, network.model.forward_intermediates(network.fold_time(x))[1])


@pytest.mark.parametrize("name", SMALL)
def test_groups_of_parameters(name: str) -> None:
    model = create_network(NetworkConfig(name, freeze_cancelled=False, learn_threshold=True)).model
    for coarse in (True, False):
        group = group_parameters(model, model.group_matcher(coarse), reverse=True)
        of = [group[key] for key, _ in model.named_parameters() if not key.startswith(("act2", "fc"))]
        assert of == sorted(of)  # from input to output
        assert group["fc.weight"] == group["fc.bias"] == max(group.values()) > max(of)
    stages = {key.split(".")[1]: group_parameters(model, model.group_matcher(True), reverse=True)[key]
              for key, _ in model.named_parameters() if key.startswith("stages")}  # fmt: skip
    assert len(set(stages.values())) == len(stages) == 3
    spared = model.no_weight_decay()
    names = [key for key, _ in model.named_parameters(remove_duplicate=False)]  # some amplitudes are shared
    assert spared == {key for key in names if key.endswith(("raw_amplitude", "threshold"))}
    decayed = next(g for g in param_groups_weight_decay(model, 0.1, spared) if g["weight_decay"])["params"]
    assert not {id(p) for p in decayed} & {id(model.get_parameter(key)) for key in spared}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_torchscript_and_fx(name: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model(name, **narrow(name)).eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    torch.testing.assert_close(torch.jit.script(traced)(x), model(x))


def test_fast_resnet_norms_start_where_they_are_told() -> None:
    model = timm.create_model("tspike_fast_resnet_small", norm_bias=-0.5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 6
    assert all(bool((norm.bias == -0.5).all()) for norm in norms)
    assert not bool((model.fc.bias == -0.5).any())


def test_fast_resnet_without_norms() -> None:
    """Its signals keep their size, so neurons fire as often as with norms, and every amplitude is live."""
    kwargs = {"norm_free_gain": 1.27, "widths": [32, 64, 64]}
    network = create_network(NetworkConfig("tspike_fast_resnet", 10, timesteps=1, backbone_kwargs=kwargs))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert {neuron.effect for neuron in network.report().neurons} == {"live"}
    gains = {name for name, _ in network.model.named_parameters() if name.endswith(".gain")}
    assert len(gains) == 6
    assert gains < network.model.no_weight_decay()
    with torch.no_grad():
        network.model.conv1.weight.copy_(torch.eye(12).view(12, 3, 2, 2))  # white noise stays white
    with firing_rates(network) as rates:
        network(torch.randn(16, 3, 32, 32))
    assert all(0.4 < rate.total < 0.8 for rate in rates.values()), rates
    with pytest.raises(ValueError, match="norm_free_gain must be a positive number or None, got 0"):
        timm.create_model("tspike_fast_resnet", norm_free_gain=0)
