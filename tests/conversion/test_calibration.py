"""A spiking network made from a trained ANN: what is fitted, how well, and that nothing else changes."""

from __future__ import annotations

import copy
import itertools

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tspike import SpikingNetwork
from lightning_tspike._calls import running
from lightning_tspike.conversion import calibrate
from lightning_tspike.conversion.calibration import RIDGE
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, ternarize


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels."""
    data = DigitsDataModule(batch_size=2000)
    data.setup("fit")
    data.setup("test")
    return (*next(iter(data.train_dataloader())), *next(iter(data.test_dataloader())))


@pytest.fixture(scope="module")
def ann(digits: tuple[Tensor, ...]) -> nn.Module:
    """A ReLU network trained on the digits."""
    torch.manual_seed(0)
    x, y = digits[:2]
    model = timm.create_model("tspike_resnet_small", num_classes=10, in_chans=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for epoch in range(12):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - epoch / 12)
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def small(timesteps: int = 4, **options: object) -> SpikingNetwork:
    return create_network(NetworkConfig("tspike_resnet_small", 10, 1, timesteps, **options))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model.eval()(x).argmax(-1) == y).double().mean().item()


@pytest.mark.parametrize(
    ("options", "at_least"),
    [
        ({}, 0.9),
        ({"timesteps": 1}, 0.85),
        ({"amplitude": "channel"}, 0.9),
        ({"neuron": "ternary_if", "reset": "soft"}, 0.9),
        ({"neuron": "binary_lif"}, 0.8),
        ({"neuron": "ctsn", "learn_decay": True, "learn_threshold": True}, 0.9),
    ],
)
def test_classifies_without_training(
    digits: tuple[Tensor, ...], ann: nn.Module, options: dict[str, object], at_least: float
) -> None:
    train, _, x, y = digits
    assert accuracy(ann, x, y) > 0.95
    network = small(**options)
    network.model.load_state_dict(ann.state_dict(), strict=False)
    copied = accuracy(network, x, y)
    missed = calibrate(network, ann, train[:512])
    assert accuracy(network, x, y) > max(at_least, copied + 0.1)
    assert missed.keys() == network.neurons().keys()
    assert all(0 < share < 0.7 for share in missed.values())
    network, x = network.double(), x.double()
    assert accuracy(fold(network, x[:1])[0], x, y) == accuracy(network, x, y)


@torch.no_grad()
def test_share_missed_is_that_of_the_variance(digits: tuple[Tensor, ...], ann: nn.Module) -> None:
    """By hand, from what layers of ANN and network give; 32 images of 64 pixels are all looked at."""
    images, ann = digits[0][:32], copy.deepcopy(ann)
    network = small(freeze_cancelled=False)
    missed = calibrate(network, ann, images)
    seen: dict[str, list[Tensor]] = {}
    for name, neuron in network.neurons().items():
        for module in (ann.get_submodule(name), neuron):
            module.register_forward_hook(lambda _m, _a, y, name=name: seen.setdefault(name, []).append(y.clone()))
    ann(images)
    network.eval()(images)
    for name, (activation, spikes) in seen.items():
        rate = spikes.unflatten(0, (4, -1)).mean(0)
        variances = [v.var((0, 2, 3), correction=0).sum() for v in (activation - rate, activation)]
        # statistics of batch norm: in eval mode the variance is divided by n - 1
        assert (variances[0] / variances[1]).item() == pytest.approx(missed[name], abs=0.02)


@pytest.mark.parametrize("count", [16, 2], ids=["tall", "wide"])  # more samples than inputs, and fewer
@pytest.mark.parametrize("groups", [1, 2, 4])
@torch.no_grad()
def test_weights_are_the_ridge_regression(groups: int, count: int) -> None:
    """Against least squares of the stacked system [X; sqrt(ridge) I] W = [Y; sqrt(ridge) g W_ann], group by group."""
    torch.manual_seed(1)
    ann = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=groups)).double()
    images = torch.randn(count, 2, 8, 8, dtype=torch.float64)
    activations, outputs = ann[:2](images), ann(images)  # [B, 4, 3, 3]
    ann = nn.Sequential(*ann, nn.Flatten())
    network = ternarize(copy.deepcopy(ann), 3, input_size=(2, 8, 8))
    calibrate(network, ann, images)
    with running(network.call(images)):
        spikes = network.model[:2](network.fold_time(images)).unflatten(0, (3, -1)).mean(0)
    assert not torch.allclose(spikes, activations)
    for g in range(groups):
        x = F.unfold(spikes.chunk(groups, 1)[g], 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
        y = outputs.chunk(groups, 1)[g].flatten(2).transpose(1, 2).flatten(0, 1)
        w_ann, w, bias = (t.chunk(groups)[g] for t in (ann[2].weight, network.model[2].weight, network.model[2].bias))
        ridge, gain = _ridge_and_gain(spikes, outputs, ann[2])
        centred = x - x.mean(0)
        rows = torch.cat([centred, ridge**0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
        right = torch.cat([y - y.mean(0), ridge**0.5 * gain * w_ann.flatten(1).T])
        expected = torch.linalg.lstsq(rows, right).solution
        torch.testing.assert_close(w.flatten(1).T, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(bias, y.mean(0) - x.mean(0) @ expected, rtol=1e-8, atol=1e-10)


def _ridge_and_gain(spikes: Tensor, outputs: Tensor, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Ridge: RIDGE times the mean square of what the layer reads, over all groups; gain: W_ann's best factor."""
    patches = F.unfold(spikes, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    ridge = RIDGE * patches.square().sum(0).mean()
    ours = F.conv2d(spikes, layer.weight, None, 2, 1, 1, layer.groups)
    ours, theirs = (t - t.mean((0, 2, 3), keepdim=True) for t in (ours, outputs))
    return ridge, (ours * theirs).sum() / ours.square().sum()


def test_what_sees_only_the_image_keeps_its_weights(digits: tuple[Tensor, ...], ann: nn.Module) -> None:
    network = small()
    calibrate(network, ann, digits[0][:64])
    torch.testing.assert_close(network.model.conv1.weight, ann.conv1.weight, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(network.model.stages[0][0].conv1.weight, ann.stages[0][0].conv1.weight, atol=0.01)


def test_is_deterministic_and_leaves_everything_else_alone(digits: tuple[Tensor, ...], ann: nn.Module) -> None:
    weights = {name: t.clone() for name, t in ann.state_dict().items()}
    networks = [small(), small()]
    state = torch.random.get_rng_state()
    networks[1].eval()
    for network in networks:
        calibrate(network, ann, digits[0][:64])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, weights[name]) for name, t in ann.state_dict().items())
    for name, t in networks[0].state_dict().items():
        assert torch.equal(t, networks[1].state_dict()[name]), name
    assert all(m.training for m in networks[0].modules())
    assert not any(m.training for m in networks[1].modules())
    assert all(m.momentum == 0.1 for n in networks for m in n.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (*networks, ann) for m in n.modules())


@pytest.mark.parametrize(
    ("backbone", "amplitude"),
    [
        *itertools.product(
            [
                *("tspike_sew_resnet_small", "tspike_ms_resnet_small", "tspike_max_resnet_small"),
                *("tspike_vgg_small", "vit_tiny_patch16_224"),
            ],
            ["layer", "channel"],
        ),
        *(("resnet18d", "channel"), ("seresnet18", "layer")),
        pytest.param("mobilenetv2_100", "channel", marks=pytest.mark.slow),
        pytest.param("regnetx_002", "layer", marks=pytest.mark.slow),
        pytest.param("densenet121", "channel", marks=pytest.mark.slow),
        pytest.param("mixer_s32_224", "layer", marks=pytest.mark.slow),
    ],
)
def test_every_family_of_networks(backbone: str, amplitude: str) -> None:
    """Random weights: what the spikes miss is a share, all weights stay finite, and the result folds."""
    size = {"mixer_s32_224": 224, "vit_tiny_patch16_224": 32}.get(backbone, 64)
    kwargs: dict[str, object] = {"img_size": 32} if backbone.startswith("vit") else {}
    network = create_network(NetworkConfig(backbone, 5, 3, 2, amplitude=amplitude, backbone_kwargs=kwargs))
    model = timm.create_model(backbone, num_classes=5, **kwargs)
    x = torch.rand(4, 3, size, size)
    missed = calibrate(network, model, x)
    assert missed
    assert all(0 <= share <= 1 for share in missed.values())
    assert all(t.isfinite().all() for t in network.state_dict().values())
    assert network.eval()(x).isfinite().all()
    fold(network.double(), x[:1].double())


def test_another_architecture_is_refused(ann: nn.Module) -> None:
    network = create_network(NetworkConfig("tspike_resnet_small", 7, 1))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"another architecture.*fc\.(bias|weight)"):
        calibrate(network, ann, torch.zeros(4, 1, 8, 8))
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("shape", [(4, 2, 1, 8, 8), (1, 1, 8, 8)])
def test_needs_some_still_images(ann: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more still images"):
        calibrate(small(), ann, torch.zeros(shape))


def test_coupled_thresholds_are_refused(ann: nn.Module) -> None:
    with pytest.raises(ValueError, match="couple_threshold=True ties them in"):
        calibrate(small(couple_threshold=True), ann, torch.zeros(4, 1, 8, 8))


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv(x)))).mean((2, 3)))


def test_an_ann_whose_activations_are_functions() -> None:
    ann = _Functional()
    network = ternarize(copy.deepcopy(ann), 4, input_size=(1, 8, 8))
    errors = calibrate(network, ann, torch.randn(32, 1, 8, 8))
    assert errors.keys() == network.neurons().keys() == {"relu", "relu2"}
    assert max(errors.values()) < 0.9
    assert dict(ann.named_children()).keys() == {"conv", "conv2", "fc"}
