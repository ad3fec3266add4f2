"""The cost of synaptic operations: what it counts, its gradient, and that it does what it is for."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_tspike import SpikingNetwork, TernarySNNModule
from lightning_tspike.analysis.energy import measure_energy
from lightning_tspike.analysis.run_logs import read_logs
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.folding import fold
from lightning_tspike.graph import TraceError
from lightning_tspike.network import ternarize
from lightning_tspike.training import SynapticOperations, synaptic_cost
from lightning_tspike.training.synaptic_cost import firing_rate, synaptic_operations

TINY = {
    **{"backbone": "tspike_resnet_small", "num_classes": 10, "in_chans": 1, "timesteps": 2},
    "backbone_kwargs": {"layers": [1, 1], "widths": [4, 8]},
}
Build = Callable[..., SpikingNetwork]


class Shared(nn.Module):
    """One activation called at three places, a concatenation, a branch, a pool of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.Conv2d(10, 5, 3)
        self.act, self.pool, self.sums, self.fc = nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        y = self.act(self.conv2(x))
        z = self.act(self.conv3(self.pool(torch.cat([x, y], 1))))
        return self.fc(self.sums(z).flatten(1))


def counted(network: SpikingNetwork, images: Tensor) -> tuple[SynapticOperations, Tensor]:
    operations = SynapticOperations(network, images)
    with operations.counting() as readings, torch.no_grad():
        network(images)
    return operations, operations.shares(readings)


def measured(network: SpikingNetwork, images: Tensor, readers: tuple[str, ...]) -> float:
    """Share of the MACs by the folded network; exactly the readers do synaptic operations there."""
    report = measure_energy(fold(network, images[:1], integer_pools=True)[0], images)
    assert {layer.name for layer in report.layers if layer.synops} == set(readers)
    steps = network.timesteps if images.ndim == 4 else 1  # of an image, the ANN's MACs are those of one pass
    read = [layer for layer in report.layers if layer.name in readers]
    return sum(layer.synops for layer in read) / sum(steps * layer.ann_macs for layer in read)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tspike_resnet_small", {}),
        ("tspike_resnet_small", {"amplitude": "channel"}),
        ("tspike_resnet_small", {"neuron": "binary_lif"}),
        ("tspike_ms_resnet_small", {}),
        ("tspike_vgg_small", {"backbone_kwargs": {"pool": "max"}}),
        ("tspike_vgg_small", {"backbone_kwargs": {"pool": "avg"}}),
    ],
)
def test_it_counts_what_the_folded_network_does(lively: Build, backbone: str, options: dict[str, object]) -> None:
    network, images = lively(backbone, num_classes=5, timesteps=2, **options), torch.randn(3, 3, 16, 16).double()
    operations, shares = counted(network, images)
    assert shares.sum().item() == pytest.approx(measured(network, images, operations.readers), rel=1e-9)
    assert all(name in network.neurons() for name in operations.neurons)
    assert (shares > 0).all()
    assert (shares <= operations.most).all()


def test_frames(lively: Build) -> None:
    network, frames = lively("tspike_resnet_small", in_chans=2, timesteps=4), torch.randn(2, 3, 2, 8, 8).double()
    operations, shares = counted(network, frames)
    assert shares.sum().item() == pytest.approx(measured(network, frames, operations.readers), rel=1e-9)


def test_spikes_that_meet_before_they_are_read_count_as_many(lively: Build) -> None:
    """A sum of spikes is at most as large as they are many; those of SEW-ResNet's shortcuts cancel now and then."""
    network, images = lively("tspike_sew_resnet_small", timesteps=2), torch.randn(3, 3, 16, 16).double()
    operations, shares = counted(network, images)
    share = measured(network, images, operations.readers)
    assert share < shares.sum().item() < 1.5 * share
    assert operations.most.sum() > 1  # two spikes can meet


def test_a_module_that_is_called_at_several_places(randomize: Build) -> None:
    with pytest.warns(UserWarning, match="called at several places"):
        network = randomize(ternarize(Shared(), 2, input_size=(3, 14, 14), freeze_cancelled=False))
    images = torch.randn(4, 3, 14, 14).double()
    operations, shares = counted(network, images)
    assert operations.neurons == ("act",)
    assert operations.readers == ("conv2", "conv3", "fc")
    share = measured(network, images, operations.readers)  # it pools spikes of two calls, which each count
    assert share <= shares.sum().item() < 2.5 * share
    # by hand: what each layer would do if all neurons fired; a max pool takes four of the joined spikes, a sum pool too
    dense = {"conv2": 12 * 12 * 6 * 4, "conv3": 4 * 4 * 5 * 10 * 9, "fc": 3 * 20}
    most = (dense["conv2"] + 4 * dense["conv3"] + 4 * dense["fc"]) / sum(dense.values())
    assert operations.most.item() == pytest.approx(most)


def test_gradients_by_finite_differences() -> None:
    """Spikes as real numbers, all away from 0; towards amplitudes that they follow the gradient is 0."""
    spikes = [torch.randn(4, 3, 2, 2).double(), torch.randn(4, 5).double()]
    signs = [(s.sign() * (s.abs() + 0.1)).requires_grad_() for s in spikes]
    amplitudes = torch.tensor([0.7, 1.3, 1.1], dtype=torch.float64, requires_grad=True)
    fan_outs = [torch.rand(3).double(), torch.rand(5).double()]
    most = torch.tensor([0.6, 0.5]).double()

    def cost(target: float | None, per: str) -> Callable[..., Tensor]:
        def of(a: Tensor, b: Tensor, amplitude: Tensor) -> Tensor:
            rates = [firing_rate(a, amplitude), firing_rate(b)]
            return synaptic_cost(synaptic_operations(rates, fan_outs), most, target, per)

        return of

    for target in (None, 0.01):
        for per in ("network", "layer"):
            assert torch.autograd.gradcheck(cost(target, per), (*signs, amplitudes))
    # the spikes follow the amplitude
    plain = spikes[0].sign()
    followed = firing_rate(plain * amplitudes.view(-1, 1, 1), amplitudes).sum()
    assert torch.autograd.grad(followed, amplitudes)[0].abs().max() < 1e-12
    assert followed.item() == pytest.approx(3)


def test_the_target() -> None:
    operations, most = torch.tensor([0.3, 0.05]), torch.tensor([0.5, 0.5])
    assert synaptic_cost(operations, most).item() == pytest.approx(0.35)
    assert synaptic_cost(operations, most, 0.2).item() == pytest.approx(0.15)
    assert synaptic_cost(operations, most, 0.4).item() == 0
    assert synaptic_cost(operations, most, 0.2, "layer").item() == pytest.approx(0.2)  # the second layer has no say
    # another process's batch decides with it
    assert synaptic_cost(operations, most, 0.4, seen=2 * operations).item() == pytest.approx(-0.05)


def gradients(module: TernarySNNModule, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    loss, _ = module._training_loss(x, y, 0)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in module.network.named_parameters()}


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_gradients_are_the_same_whatever_is_kept(pool: str) -> None:
    options = {"backbone_kwargs": {"pool": pool}, "freeze_cancelled": False, "synops_weight": 2.0}
    base = TernarySNNModule("tspike_vgg_small", 10, 2, 1, **options).double()
    x, y = torch.randn(4, 1, 16, 16).double(), torch.arange(4)
    want = gradients(copy.deepcopy(base), x, y)
    for memory in ("packed", "lean"):
        module = copy.deepcopy(base)
        module.network.memory = memory
        torch.testing.assert_close(gradients(module, x, y), want, rtol=1e-12, atol=1e-14)
    free = copy.deepcopy(base)
    free.objective = type(base.objective)()
    assert not all(torch.allclose(g, want[name]) for name, g in gradients(free, x, y).items() if name != "loss")


@pytest.mark.slow
def test_compiled_in_one_piece() -> None:
    torch.compiler.reset()
    module = TernarySNNModule(**TINY, synops_weight=2.0, freeze_cancelled=False).double()
    x, y = torch.randn(4, 1, 8, 8).double(), torch.arange(4)
    want = gradients(copy.deepcopy(module), x, y)
    module.network.model.compile(fullgraph=True, backend="aot_eager")  # an error at the first break
    for _ in range(2):
        module.zero_grad()
        torch.testing.assert_close(gradients(module, x, y), want, rtol=1e-12, atol=1e-14)


def test_half_precision_counts_in_single() -> None:
    s = torch.randn(600, 5, 24, 24).sign() * (torch.rand(600, 5, 24, 24) < 0.3)
    amplitude = torch.tensor(0.837)
    got = firing_rate((s * amplitude).bfloat16(), amplitude)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, s.abs().double().mean((0, 2, 3)).float(), rtol=1e-5, atol=0)


def fit(folder: Path, epochs: int = 4, trainer: dict[str, object] | None = None, **options: object) -> dict[str, list]:
    """Fit the digits; what was logged."""
    L.seed_everything(1, verbose=False)
    wide = {"backbone_kwargs": {"layers": [1, 1], "widths": [16, 32]}}
    module = TernarySNNModule(**TINY | wide, opt="adamw", lr=0.01, **options)
    run = L.Trainer(
        **{"accelerator": "cpu", "max_epochs": epochs, "limit_val_batches": 0, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1},
        **{"logger": CSVLogger(folder, name=None, version=0), "default_root_dir": folder},
        **(trainer or {}),
    )
    run.fit(module, DigitsDataModule(batch_size=128))
    return {tag: list(values) for tag, (_, values) in read_logs(folder / "version_0").scalars.items()}


@pytest.mark.slow
def test_it_lowers_the_synaptic_operations(tmp_path: Path) -> None:
    free = fit(tmp_path / "free", synops_weight=1e-9)["train/synops"]
    cheap = fit(tmp_path / "cheap", synops_weight=10.0)
    assert free[0] == pytest.approx(cheap["train/synops"][0])
    assert min(free) > 0.5
    assert cheap["train/synops"][-1] < 0.7 * free[-1]
    assert cheap["train/synops_cost"] == pytest.approx([10 * share for share in cheap["train/synops"]])
    assert cheap["train/acc1"][-1] > 0.2  # not by silence


def test_a_target_is_reached_and_held(tmp_path: Path) -> None:
    logged = fit(tmp_path, epochs=6, synops_weight=20.0, synops_target=0.45)
    assert logged["train/synops"][0] > 0.6
    last = logged["train/synops"][-20:]
    assert sum(last) / len(last) == pytest.approx(0.45, abs=0.03)
    beyond = [20 * max(0.0, share - 0.45) for share in logged["train/synops"]]
    assert logged["train/synops_cost"] == pytest.approx(beyond, abs=1e-5)


def test_the_weight_rises(tmp_path: Path) -> None:
    logged = fit(tmp_path, epochs=3, synops_weight=2.0, synops_warmup_epochs=2)
    weights = [cost / share for cost, share in zip(logged["train/synops_cost"], logged["train/synops"], strict=True)]
    steps = len(weights) // 3
    assert weights[: 2 * steps] == pytest.approx([k / steps for k in range(2 * steps)], abs=1e-5)
    assert weights[2 * steps :] == pytest.approx([2.0] * steps)


@pytest.mark.slow
def test_gradient_accumulation_in_half_precision_with_packed_spikes(tmp_path: Path) -> None:
    trainer = {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}
    logged = fit(tmp_path, epochs=3, trainer=trainer, synops_weight=3.0, memory="packed")
    assert logged["train/synops"][-1] < 0.9 * logged["train/synops"][0]


def test_a_network_of_ones_own_and_other_sizes(tmp_path: Path) -> None:
    own = ternarize(nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)), 2, input_size=(1, 8, 8))
    module = TernarySNNModule(own, 3, 2, 1, synops_weight=1.0)
    gradients(module, torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    module = TernarySNNModule(**TINY, synops_weight=1.0)
    for size in (8, 12, 8):
        gradients(module, torch.randn(4, 1, size, size), torch.arange(4))


def test_bad_options() -> None:
    for options, message in (
        ({"synops_weight": -1.0}, "synops_weight must be a number of at least 0, got -1.0"),
        ({"synops_weight": float("nan")}, "synops_weight must be"),
        ({"synops_weight": 1.0, "synops_target": 1.5}, r"synops_target must be a share .* got 1.5"),
        ({"synops_target": 0.1}, "set synops_weight=1"),
        ({"synops_weight": 1.0, "synops_per": "neuron"}, "synops_per must be 'network' or 'layer', got 'neuron'"),
        ({"synops_warmup_epochs": -1}, "synops_warmup_epochs must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            TernarySNNModule(**TINY, **options)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.fc(torch.from_numpy(x.detach().numpy()).mean((2, 3)))  # a proxy is no array


def test_a_network_without_a_graph_or_without_readers() -> None:
    with pytest.warns(UserWarning, match="could not be traced"):
        network = ternarize(Untraceable(), 2, input_size=(1, 8, 8))
    module = TernarySNNModule(network, 3, 2, 1, synops_weight=1.0)
    with pytest.raises(TraceError, match="counted by the network's graph, which says who reads whose spikes"):
        gradients(module, torch.randn(2, 1, 8, 8), torch.arange(2))
    alone = ternarize(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU()), 2, input_size=(1, 8, 8))
    with pytest.raises(TraceError, match="no convolution or linear layer that reads spikes"):
        SynapticOperations(alone, torch.randn(2, 1, 8, 8))
    network = ternarize(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), 2, input_size=(6, 1, 1)
    )
    operations = SynapticOperations(network, torch.randn(2, 6, 1, 1))
    with operations.counting() as readings:
        pass
    with pytest.raises(RuntimeError, match="call the network within counting"):
        operations.shares(readings)


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    """Without norms, whose statistics are of one process: the target lies between the shares of the two batches."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import lightning as L, torch
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset
        from lightning_tspike import TernarySNNModule, ternarize

        if __name__ == "__main__":
            devices = int(sys.argv[1])
            torch.manual_seed(0)
            # the sampler deals out rows in turns: the first process gets the bright images, which fire more
            images = torch.randn(8, 1, 8, 8) * torch.tensor([2.0, 0.5]).repeat(4).view(-1, 1, 1, 1)
            labels = torch.arange(8) % 3
            layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
            network = ternarize(nn.Sequential(*layers), 2, input_size=(1, 8, 8))
            module = TernarySNNModule(
                network, 3, 2, 1, synops_weight=5.0, synops_target=float(sys.argv[2]), synops_per="layer", lr=0.1,
                weight_decay=0.0, sched="none",
            ).double()
            module.log = lambda name, value, **_: seen.append(float(value)) if name == "train/synops" else None
            module.log_dict = lambda *_, **__: None
            seen = []
            trainer = L.Trainer(
                accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
                limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            )
            trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8 // devices))
            if trainer.is_global_zero:
                torch.save((seen, module.state_dict()), f"{devices}.pt")
            if devices > 1:
                torch.distributed.destroy_process_group()
        """)
    )

    def train(devices: int, target: float) -> tuple[list[float], dict[str, Tensor]]:
        command = [sys.executable, str(script), str(devices), str(target)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment
        )
        assert result.returncode == 0, result.stderr
        return torch.load(tmp_path / f"{devices}.pt")

    free = train(1, 0.99)
    share = free[0][0]
    one, two = train(1, 0.95 * share), train(2, 0.95 * share)
    assert one[0] == pytest.approx(two[0])
    torch.testing.assert_close(two[1], one[1], rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(p, free[1][name]) for name, p in one[1].items())


def test_the_teacher_is_not_counted() -> None:
    """Another network that runs within has no say."""
    network, other = (TernarySNNModule(**TINY).network.eval() for _ in range(2))
    x = torch.randn(2, 1, 8, 8)
    operations, shares = counted(network, x)
    with operations.counting() as readings, torch.no_grad():
        other(x)
        logits = network(x)
        F.softmax(logits, -1)
    torch.testing.assert_close(operations.shares(readings), shares)
