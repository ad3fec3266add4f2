"""From timm models to spiking networks."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.folding import fold
from lightning_tspike.graph.tracing import TraceError
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork, ternarize
from lightning_tspike.neurons import TernaryLIF
from tests.narrow_heads import narrow_head


@pytest.mark.parametrize(
    ("backbone", "neurons"),
    [("resnet18", 17), ("resnet34", 33), ("vgg11_bn", 10), ("vgg16_bn", 15), ("tspike_resnet_small", 7)],
)
def test_timm_backbones(backbone: str, neurons: int) -> None:
    network = create_network(NetworkConfig(backbone, num_classes=7, timesteps=2, backbone_kwargs=narrow_head(backbone)))
    assert len(network.neurons()) == neurons
    assert not any(isinstance(m, nn.ReLU) for m in network.modules())
    assert len(network.encoders) == 1
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("backbone", ["tspike_resnet_small", "vgg11_bn", "resnet18"])
def test_image_equals_the_same_frame_at_every_step(lively: Callable[..., SpikingNetwork], backbone: str) -> None:
    """Also: computing the static prefix once equals computing it at every step."""
    network = lively(backbone, num_classes=5, timesteps=3, backbone_kwargs=narrow_head(backbone))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    frames = x.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    expected = network(x, per_step=True)
    assert expected.std() > 0.01
    torch.testing.assert_close(network(frames, per_step=True), expected)
    torch.testing.assert_close(network(x), expected.mean(0))  # and back to images
    network.encoders = ()
    torch.testing.assert_close(network(x, per_step=True), expected)


def test_time_steps_of_frames_keep_their_order(lively: Callable[..., SpikingNetwork]) -> None:
    """Step t of sample b depends on frames 1..t of sample b alone."""
    network = lively("tspike_resnet_small", timesteps=3)
    frames = torch.randn(2, 3, 3, 16, 16, dtype=torch.float64)
    changed = frames.clone()
    changed[1, 2] = torch.randn(3, 16, 16, dtype=torch.float64)
    before, after = network(frames, per_step=True), network(changed, per_step=True)  # [T, B, K]
    differs = (before != after).any(-1)
    assert differs.tolist() == [[False, False], [False, False], [False, True]]


def test_prefix_is_computed_once() -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", timesteps=4))
    seen = []
    network.model.conv1.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    network.model.fc.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    network(torch.randn(2, 3, 8, 8))
    assert seen == [2, 8]


class _Mixing(nn.Module):
    """Adds the static stem to spikes: the stem cannot be computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(self.pool(x + self.act(x)).flatten(1))


class _Untraceable(_Mixing):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.from_numpy(x.detach().numpy()))


@pytest.mark.parametrize("model", [_Mixing, _Untraceable])
def test_other_graphs_repeat_the_input(model: type[nn.Module]) -> None:
    network = ternarize(model(), 3)
    assert network.encoders == ()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(x), network(x.unsqueeze(1).expand(-1, 3, -1, -1, -1)))


def test_shared_activation_becomes_one_neuron() -> None:
    act = nn.ReLU()
    network = ternarize(nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), act, nn.Flatten(), nn.LazyLinear(2)))
    assert network.model[1] is network.model[3]
    assert isinstance(network.model[1], TernaryLIF)


def test_no_activation_to_replace() -> None:
    with pytest.raises(ValueError, match="no activation modules"):
        ternarize(nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 1, 8, 8), (3, 8, 8), (2, 3)])
def test_wrong_channels_or_dimensions(shape: tuple[int, ...]) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small"))
    with pytest.raises(ValueError, match=r"images \[B, 3, H, W\].*in_chans") as error:
        network(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet43"}, "unknown backbone 'resnet43'; did you mean .*'resnet34'"),
        ({"backbone": "local-dir:/tmp"}, "unknown backbone"),
        ({"backbone": "resnet18", "timesteps": 0}, "timesteps .* 0"),
        ({"backbone": "resnet18", "num_classes": -1}, "num_classes .* -1"),
        ({"backbone": "resnet18", "in_chans": 1.5}, r"in_chans .* 1\.5"),
        ({"backbone": "resnet18", "backbone_kwargs": {"widht": 3}}, "widht"),
        ({"backbone": "resnet18", "backbone_kwargs": {"act": nn.ReLU}}, "JSON"),
        (
            {"backbone": "tspike_resnet_small", "backbone_kwargs": {"layers": [1], "widths": [8, 8]}},
            "one number per stage",
        ),
    ],
)
def test_bad_configuration(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_network(NetworkConfig(**config))


def test_own_backbone_is_in_timms_registry() -> None:
    model = timm.create_model("tspike_resnet_small", num_classes=3, in_chans=1, layers=(2, 1), widths=(8, 12))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert "tspike_resnet_small" in timm.list_models("tspike_*")
    model.reset_classifier(5)
    assert model.get_classifier().out_features == 5
    assert sum(p.numel() for p in timm.create_model("tspike_resnet_small").parameters()) == 78_042


def test_deepcopy_after_a_forward(lively: Callable[..., SpikingNetwork]) -> None:
    network = lively("tspike_resnet_small")
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    logits = network(x)
    assert torch.equal(copy.deepcopy(network)(x), logits)


class _Unshuffled(nn.Module):
    """Rearranges pixels into channels before its first convolution, as TResNet does."""

    pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle, self.conv, self.act = nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.ReLU()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv(self.unshuffle(x))).mean((2, 3)))


def test_first_convolution_does_not_see_the_images_channels() -> None:
    network = ternarize(_Unshuffled(), 2)
    assert network.input_size == (3, 16, 16)
    assert network.encoders == ("act",)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 2)


class _Caching(_Mixing):
    """Keeps what it has computed once, as EfficientViT keeps its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4, 1, 1))
        self.cache: dict[torch.Size, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape not in self.cache:
            self.cache[x.shape] = 2 * self.bias
        return self.fc(self.pool(self.act(self.stem(x) + self.cache[x.shape])).flatten(1))


def test_looking_into_a_model_leaves_nothing_behind() -> None:
    model = _Caching()
    network = ternarize(model, 2)
    network.report()
    assert model.cache == {}
    assert isinstance(network(torch.randn(2, 3, 8, 8)), torch.Tensor)


class _Tokens(nn.Module):
    """An MLP on tokens, whose channels come last, and one activation at two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.shared = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.ReLU()
        self.mlp, self.token_act = nn.Linear(8, 6), nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x)).flatten(2).transpose(1, 2)  # [B, N, 8]
        x = self.shared(self.token_act(self.mlp(x)).mean(1))
        return self.fc2(self.shared(self.fc1(x)))


def test_one_amplitude_where_channels_cannot_be_told_apart() -> None:
    network = ternarize(_Tokens(), 2, amplitude="channel", input_size=(3, 16, 16))
    shapes = {name: tuple(neuron.raw_amplitude.shape) for name, neuron in network.neurons().items()}
    assert shapes == {"act": (8,), "token_act": (1,), "shared": (1,)}
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 2)  # nothing depends on the number of tokens


def test_amplitudes_per_channel_need_a_graph() -> None:
    with pytest.raises(TraceError, match="_Untraceable could not be traced"):
        ternarize(_Untraceable(), 2, amplitude="channel")


def test_unknown_neuron() -> None:
    with pytest.raises(ValueError, match="neuron must be one of .*'ternary_lif'.*, or 'none' .*; got 'lif'"):
        ternarize(_Mixing(), 2, neuron="lif")


class _Heads(nn.Module):
    """Reads the number of images at the start and reshapes by it behind its neurons."""

    def __init__(self, reads: Callable[[torch.Tensor, torch.Tensor], int]) -> None:
        super().__init__()
        self.conv, self.act, self.fc, self.reads = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 10), reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.conv(x))
        z = z.reshape(self.reads(x, z), 8, -1)
        return self.fc(z.mean(-1))


@pytest.mark.parametrize("reads", [lambda x, _: x.shape[0], lambda x, _: len(x.tolist()), lambda x, _: x.size(0)])
def test_images_are_not_mixed_by_a_batch_size_read_before_the_neurons(reads: Callable[..., int]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = ternarize(_Heads(reads), 4, input_size=(3, 8, 8)).eval()
    assert network.encoders == ()
    if "shape" in reads.__code__.co_names:
        assert re.search(r"_Heads reads the number of images.*test_ternarize.py:\d+", str(caught[0].message))
    x = torch.randn(8, 3, 8, 8)
    logits = network(x)
    assert logits.shape == (8, 10)
    for i in range(8):
        torch.testing.assert_close(network(x[i : i + 1]), logits[i : i + 1])


@pytest.mark.filterwarnings("error")
def test_a_batch_size_read_behind_the_neurons_keeps_the_prefix() -> None:
    network = ternarize(_Heads(lambda _, z: z.shape[0]), 4, input_size=(3, 8, 8)).eval()
    assert network.encoders == ("act",)
    x = torch.randn(8, 3, 8, 8)
    torch.testing.assert_close(network(x), network(x.unsqueeze(1).expand(-1, 4, -1, -1, -1)))


class _Loop(_Heads):
    """Handles sample by sample, as many as came in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.conv(x))
        return self.fc(torch.stack([z[i].mean((1, 2)) for i in range(x.shape[0])]))


class _Index(_Heads):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.conv(x))
        return self.fc(z[torch.arange(x.shape[0])].mean((2, 3)))


@pytest.mark.parametrize("kind", [_Loop, _Index])
def test_other_ways_to_count_images(kind: type[_Heads]) -> None:
    with pytest.warns(UserWarning, match="reads the number of images"):
        network = ternarize(kind(max), 4, input_size=(3, 8, 8)).eval()
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(network(x), network(x.unsqueeze(1).expand(-1, 4, -1, -1, -1)))
    assert network(x).shape == (3, 10)


def test_says_that_a_model_cannot_be_traced() -> None:
    with pytest.warns(UserWarning, match="_Untraceable could not be traced.*repeated T times"):
        ternarize(_Untraceable(), 3)


def test_the_ann_itself() -> None:
    ann = timm.create_model("resnet18", num_classes=5).double().eval()
    network = ternarize(copy.deepcopy(ann), 1, neuron="none").eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(network(x), ann(x))
    assert not network.neurons()
    folded, report = fold(network, x, merge_bn=True)
    torch.testing.assert_close(folded(x), ann(x))
    assert not report.neurons
    energy = measure_energy(folded, x)
    assert energy.synops == 0
    assert energy.macs == energy.ann_macs > 0
    named = create_network(NetworkConfig("tspike_resnet_small", num_classes=5, timesteps=1, neuron="none"))
    assert sum(isinstance(module, nn.ReLU) for module in named.modules()) == 7
