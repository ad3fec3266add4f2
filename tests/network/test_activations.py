"""Which activations become neurons, and what is said of those that do not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers import activations as timms
from torch import nn
from torch.nn import functional as F
from torchvision.models.googlenet import BasicConv2d, Inception

from lightning_tspike.folding import fold
from lightning_tspike.network import SpikingNetwork, ternarize
from lightning_tspike.neurons import SpikingNeuron


class _Tutorial(nn.Module):
    """As a newcomer writes it: activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.drop, self.fc1, self.fc2 = nn.Dropout(0.5), nn.Linear(8, 16), nn.Linear(16, 5)
        self.num_classes = 5
        self.unused = nn.Linear(3, 3)
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.relu(self.conv2(x)).mean((2, 3))
        x = self.drop(F.gelu(self.fc1(x), approximate="tanh").relu_())
        return self.fc2(x)


@pytest.mark.filterwarnings("error")
def test_functions_become_neurons(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    model = _Tutorial()
    names = list(model.state_dict())
    network = ternarize(model, 2, input_size=(3, 16, 16), freeze_cancelled=False)
    assert set(network.neurons()) == {"relu", "relu2", "gelu", "relu3"}
    assert network.encoders == ("relu",)
    assert [name for name in network.model.state_dict() if name.partition(".")[0] not in network.neurons()] == names
    assert network.num_classes == 5
    assert "_Tutorial(" in repr(network)
    assert network.training
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    assert network.model.conv1.weight.grad is not None
    _, report = fold(randomize(network), torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert report.kept == [] or set(report.kept) <= set(network.neurons())
    assert report.functions == ()


def test_rewritten_code_is_copied_pickled_and_loaded() -> None:
    torch.manual_seed(1)
    network = ternarize(_Tutorial(), 2, input_size=(3, 16, 16)).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x), expected)
        assert other.state_dict().keys() == network.state_dict().keys()
        assert other.model.conv1.weight is not network.model.conv1.weight
        other.model.conv1.weight.data.zero_()
        assert not torch.equal(other(x), expected)  # the copy's code reads the copy's weights
    fresh = ternarize(_Tutorial(), 2, input_size=(3, 16, 16)).eval()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), expected)


class _Block(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.fc, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2), nn.ReLU()
        self.function = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.function(self.conv(self.act(self.stem(x)))).mean((2, 3)))


def test_functions_in_attributes_become_neurons() -> None:
    network = ternarize(_Block(F.silu), 2, input_size=(3, 8, 8))
    assert set(network.neurons()) == {"act", "function"}


class _Options(_Block):
    """Its forward depends on more than its tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.act(self.stem(x)))
        return self.fc(F.dropout(F.relu(x), 0.5, self.training).mean((2, 3)))


class _Random(_Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(self.act(self.stem(x))))
        return self.fc((x * torch.rand(1).item()).mean((2, 3)))


class _Methods(_Options):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(self.act(self.stem(x))).mean((2, 3)))


class _Gate(_Block):
    """A formula of which a tanh is part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.act(self.stem(x)))
        return self.fc((x * torch.tanh(x)).mean((2, 3)))


class _Kind(_Block):
    """A proxy is no tensor: tracing it alone would take the other path."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.act(self.stem(x)))
        return self.fc((F.relu(x) if isinstance(x, torch.Tensor) else -F.relu(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "function"),
    [(_Options, "relu"), (_Random, "relu"), (_Methods, "relu"), (_Gate, "tanh")],
)
def test_functions_that_stay_are_named_with_their_line(
    kind: type[_Block], function: str, randomize: Callable[[SpikingNetwork], SpikingNetwork]
) -> None:
    model = kind(nn.Identity())
    with pytest.warns(
        UserWarning, match=rf"not replaced by neurons.*{function}\(\) in the model, .*test_activations.py:\d+"
    ):
        network = ternarize(model, 2, input_size=(3, 8, 8))
    assert network.model is model
    assert set(network.neurons()) == {"act"}
    if kind is _Random:  # no two runs are alike
        return
    _, report = fold(randomize(network))
    assert len(report.functions) == 1
    assert f"activations that are no neurons: {function}() in the model" in str(report)


def test_code_that_asks_what_it_is_given_computes_the_same() -> None:
    model = _Kind(nn.Identity()).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    network = ternarize(model, 1, input_size=(3, 8, 8))
    for name in network.neurons():
        setattr(network.model, name, nn.ReLU())
    torch.testing.assert_close(network.model(x), expected)


@pytest.mark.parametrize(
    "activation",
    [
        timms.GELUTanh(), timms.GELU(), timms.QuickGELU(), timms.Swish(), timms.HardSwish(), timms.Mish(),
        timms.HardMish(), timms.Tanh(), nn.Tanh(), nn.Softplus(), nn.Hardtanh(), nn.Softsign(), nn.RReLU(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_activations_of_torch_and_timm(activation: nn.Module) -> None:
    network = ternarize(nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(144, 2)), 2,
                        input_size=(3, 8, 8))  # fmt: skip
    assert isinstance(network.model[1], SpikingNeuron)
    assert network.encoders == ("1",)


def test_gates_stay() -> None:
    gated = nn.Sequential(nn.Conv2d(3, 4, 3), timms.Sigmoid(), timms.HardSigmoid(), nn.Sigmoid(), nn.ReLU())
    assert set(ternarize(gated, 2, input_size=(3, 8, 8)).neurons()) == {"4"}


def test_a_module_called_twice_is_named(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    with pytest.warns(UserWarning, match=r"several places.*layer1.0.relu \(2 calls\), .*layer4.0.relu \(2 calls\)"):
        network = ternarize(model, 2, input_size=(3, 32, 32), freeze_cancelled=False)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    _, report = fold(randomize(network), x)
    assert report.kept == []
    assert report.deviation < 1e-12


class _InPlace(_Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(self.act(self.stem(x))))
        self.function(x)
        return self.fc(x.mean((2, 3)))


def test_an_activation_that_only_works_in_place_is_named() -> None:
    with pytest.warns(UserWarning, match=r"only work in place.*function \(.*test_activations.py:\d+\)"):
        ternarize(_InPlace(nn.ReLU(inplace=True)), 2, input_size=(3, 8, 8))


def test_torchvisions_functions_become_neurons(randomize: Callable[[SpikingNetwork], SpikingNetwork]) -> None:
    model = nn.Sequential(
        BasicConv2d(3, 8, kernel_size=3), Inception(8, 4, 4, 4, 4, 4, 4), nn.Flatten(), nn.LazyLinear(3)
    )
    model(torch.randn(1, 3, 8, 8))
    network = ternarize(model, 2, input_size=(3, 8, 8), freeze_cancelled=False)
    assert len(network.neurons()) == 7
    assert "0.relu" in network.neurons()
    folded, report = fold(randomize(network))
    assert report.kept == []
    assert "BasicConv2d" in str(folded)


def test_every_layer_of_a_transformer_encoder_spikes() -> None:
    """Also in eval mode, where torch has a fast path with an activation of its own."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, activation=F.relu)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Sequential(_Transposed(), layer), nn.Flatten())
    network = ternarize(model, 2, input_size=(3, 8, 8)).eval()
    assert set(network.neurons()) == {"2.1.activation"}
    spikes = []
    layer.activation.register_forward_hook(lambda _m, _a, output: spikes.append(output))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        logits = network(x, per_step=True)
    assert set(spikes[0].unique().tolist()) <= {-1.0, 0.0, 1.0}
    frames = x.unsqueeze(1).expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(logits, network(frames, per_step=True))


class _Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def test_hooks_move_to_the_neuron() -> None:
    model = _Block(nn.Identity())
    seen = []
    model.act.register_forward_hook(lambda _m, _a, output: seen.append(output.shape))
    network = ternarize(model, 2, input_size=(3, 8, 8))
    seen.clear()
    network(torch.randn(2, 3, 8, 8))
    assert seen == [(4, 4, 6, 6)]


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = timm.create_model("tspike_resnet_small")
    model.head = nn.Sequential(_Tutorial())
    model.function = F.relu
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match="threshold must be a positive number, got -1"):
        ternarize(model, 2, threshold=-1, input_size=(3, 32, 32))
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.function is F.relu


class _ComputedBias(nn.Module):
    """A bias for each channel, computed by a small network of its own, as Swin v2 computes its position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 3).view(3, 1))
        self.bias_net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 4))
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x) + self.bias_net(self.table).mean(0).view(1, 4, 1, 1)
        return self.head(self.act(x).mean((2, 3)))


def test_an_activation_that_the_input_does_not_reach_stays() -> None:
    network = ternarize(_ComputedBias(), 3, input_size=(3, 8, 8))
    assert list(network.neurons()) == ["act"]
    assert isinstance(network.model.bias_net[1], nn.ReLU)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(network(x), network(x[:, None].expand(2, 3, 3, 8, 8)))
    assert fold(network)[1].kept == []
