"""What a training run will be like, from one batch and a few steps: ``tspike doctor``."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from .._batches import images_of
from .._tables import new_table, table_text
from ..analysis.energy import EnergyReport, measure_energy
from ..analysis.layer_health import LayerHealth, layer_health
from ..analysis.timing import machine
from ..folding import FoldReport, fold
from ..memory import MEMORY_MODES
from ..memory.kept import kept_bytes
from ..network.report import NeuronInfo
from ..network.spiking_network import SpikingNetwork
from .module import TernarySNNModule
from .option_checks import slow_precision

__all__ = ["CheckUp", "MemoryUse", "check_up"]

_IMAGES = 16  # to look at the layers with
_FOLDED = 4  # to verify the fold with, in float64
_BATCHES = (1, 3)  # between which memory is a straight line
_STEPS = 5  # that are timed, after one that is not
_SECONDS = 30.0  # for them, at most
_MIB = 2**20


@dataclass(frozen=True)
class MemoryUse:
    """What a training step keeps for its backward pass.

    Attributes:
        memory: The memory mode.
        timesteps: Time steps T.
        bytes_per_image: For each image of a batch.
        largest_batch: That fits into what is free, beside weights, gradients and the optimizer's state; None where the
            system does not say what is free.
    """

    memory: str
    timesteps: int
    bytes_per_image: float
    largest_batch: int | None


@dataclass(frozen=True)
class CheckUp:
    """What was found; ``print`` shows it as tables.

    Attributes:
        backbone: Name of the network's architecture.
        timesteps: Time steps T.
        num_classes: Classes K.
        input_shape: Shape of an image or of the frames of a recording.
        parameters: Their number.
        precision: Of the trainer.
        neurons: What learns in the layers of neurons.
        health: How these layers fire on a training batch, as the network is.
        fold: What folding the network as it is gives.
        energy: Operations of the folded network, per image.
        fixed_bytes: Of weights, gradients and the optimizer's state.
        memory: By memory mode and T.
        batch_size: Images in a batch, on one device.
        batches: Batches of an epoch.
        epochs: Of the whole run; None where the recipe does not say.
        step_seconds: Of a training step, the median.
        wait_seconds: For the data of the next one, the median.
        machine: What ran it.
    """

    backbone: str
    timesteps: int
    num_classes: int
    input_shape: tuple[int, ...]
    parameters: int
    precision: str
    neurons: tuple[NeuronInfo, ...]
    health: dict[str, LayerHealth]
    fold: FoldReport
    energy: EnergyReport
    fixed_bytes: int
    memory: tuple[MemoryUse, ...]
    batch_size: int
    batches: int
    epochs: int | None
    step_seconds: float
    wait_seconds: float
    machine: dict[str, Any]

    @property
    def images_per_second(self) -> float:
        """Of training, on this device."""
        return self.batch_size / (self.step_seconds + self.wait_seconds)

    @property
    def hours(self) -> float | None:
        """To the end of the run on this device, validation left out."""
        if self.epochs is None:
            return None
        return self.epochs * self.batches * (self.step_seconds + self.wait_seconds) / 3600

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong with layers of neurons, by their names."""
        return {name: trouble[1] for name, layer in self.health.items() if (trouble := layer.trouble())}

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold."""
        own = {name: value for name, value in asdict(self).items() if name not in ("fold", "energy", "health")}
        return own | {
            "health": {name: layer._asdict() for name, layer in self.health.items()},
            "fold": self.fold.to_dict(),
            "energy": self.energy.to_dict(),
            "images_per_second": self.images_per_second,
            "hours": self.hours,
            "troubles": self.troubles,
        }

    def __str__(self) -> str:
        layers = new_table("layer of neurons", "neurons", "amplitude", "effect", "fires", "membrane, thresholds", "")
        for neuron in self.neurons:
            layer = self.health[neuron.name]
            trouble = layer.trouble()
            numbers = f"{layer.firing_rate:.3f}", f"{layer.membrane:.2f}", trouble[0] if trouble else ""
            layers.add_row(neuron.name, f"{layer.neurons:,}", neuron.amplitude, neuron.effect, *numbers)
        use = new_table("memory", "T", "MiB an image", f"MiB at batch {self.batch_size}", "largest batch that fits")
        for row in self.memory:
            per_image = row.bytes_per_image / _MIB
            total = per_image * self.batch_size + self.fixed_bytes / _MIB
            largest = "unknown" if row.largest_batch is None else f"{row.largest_batch:,}"
            use.add_row(row.memory, str(row.timesteps), f"{per_image:.2f}", f"{total:,.0f}", largest)
        device = self.machine["processor"] if self.machine["device"] == "CPU" else self.machine["device"]
        energy = self.energy
        advice = slow_precision(self.precision, "cpu" if self.machine["device"] == "CPU" else "cuda")
        until = ""
        if self.hours is not None:
            until = (
                f"; {_duration(self.hours)} for {self.epochs} epochs of {self.batches:,} batches, without validation"
            )
        return (
            f"{self.backbone}, T = {self.timesteps}, {self.num_classes} classes, input "
            f"{'x'.join(map(str, self.input_shape))}, {self.parameters:,} parameters\n{table_text(layers)}"
            f"{len(self.troubles)} of {len(self.neurons)} layers of neurons are silent, saturated or exploding, on a "
            f"training batch as the network is\n\n"
            f"fold: {self.fold}\n\n"
            f"operations per image, folded: {energy.macs:,.0f} multiply-accumulates and {energy.synops:,.0f} synaptic "
            f"operations, {energy.total_picojoules / 1e6:.4g} uJ; as an ANN {energy.ann_macs:,.0f} "
            f"multiply-accumulates, {energy.ann_picojoules / 1e6:.4g} uJ ({energy.accounting.name})\n"
            f"{table_text(use)}"
            f"kept for the backward pass, with {self.fixed_bytes / _MIB:,.0f} MiB of weights, gradients and the "
            f"optimizer's state; {self.precision}\n\n"
            f"{device}: {self.images_per_second:,.3g} images/s at batch {self.batch_size}: "
            f"{1e3 * self.step_seconds:,.3g} ms a step and {1e3 * self.wait_seconds:,.3g} ms for its data{until}"
            + (f"\n{advice}" if advice else "")
        )


def check_up(
    module: TernarySNNModule,
    data: LightningDataModule,
    *,
    device: str = "cpu",
    precision: Any = "32-true",
    epochs: int | None = None,
) -> CheckUp:
    """Look at a network on a batch of its data, and train it for a few steps.

    Args:
        module: What is to be trained; it is trained for some steps, so its weights change.
        data: Its datamodule, whose files must be there.
        device: ``"cpu"`` or ``"cuda"``, of which one is used.
        precision: As for Lightning's Trainer.
        epochs: Of the run.

    Raises:
        ValueError: The data has no batch for training, or none that the network takes.
    """
    if device == "cpu" and str(precision) == "16-mixed":
        precision = "bf16-mixed"  # as Lightning does
    network = module.network
    untrained = copy.deepcopy(network)
    clock = _Clock()
    trainer = _trained_a_little(module, data, clock, device, precision)
    if clock.batch is None:
        raise ValueError("the data has no batch for training")
    x = images_of(clock.batch, next(network.parameters()).dtype)
    few = x[:_IMAGES].cpu()
    settled, health = _settled(untrained, few)
    folded, report = fold(settled, few[:_FOLDED], integer_pools=True)
    energy = measure_energy(folded, few)
    memory = _memory(network.to(device).train(), x, precision, device)
    loader: Any = trainer.train_dataloader
    state = (value for values in trainer.optimizers[0].state.values() for value in values.values())
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fixed = sum(map(_bytes, [*network.parameters(), *network.buffers(), *learned]))
    fixed += sum(_bytes(value) for value in state if isinstance(value, Tensor))
    free = _free_bytes(device)
    return CheckUp(
        backbone=network.name,
        timesteps=network.timesteps,
        num_classes=network.num_classes,
        input_shape=tuple(x.shape[1:]),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        precision=str(precision),
        neurons=settled.report().neurons,
        health=health,
        fold=report,
        energy=energy,
        fixed_bytes=fixed,
        memory=tuple(
            MemoryUse(mode, timesteps, each, None if free is None else max(0, int((free - fixed) / each)))
            for (mode, timesteps), each in memory.items()
        ),
        batch_size=len(x),
        batches=len(loader),
        epochs=epochs,
        step_seconds=_median(clock.steps),
        wait_seconds=_median(clock.waits),
        machine=machine("cuda" if device == "cuda" else "cpu"),
    )


@torch.no_grad()
def _settled(network: SpikingNetwork, x: Tensor) -> tuple[SpikingNetwork, dict[str, LayerHealth]]:
    """The network in evaluation, its batch norms with this batch's statistics; and how its layers fire in training."""
    network.memory = "full"
    for module in network.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with layer_health(network) as health:
        network(x)
    return network.eval(), health


def _memory(network: SpikingNetwork, x: Tensor, precision: Any, device: str) -> dict[tuple[str, int], float]:
    """Bytes for each image of a batch, by memory mode and T."""
    mode, timesteps = network.memory, network.timesteps
    found: dict[tuple[str, int], float] = {}
    few = {1, timesteps} if x.ndim == 4 else {timesteps}  # the frames of a recording are what they are
    for memory, steps in product(MEMORY_MODES, sorted(few)):
        network.memory, network.timesteps = memory, steps
        found[memory, steps] = _bytes_per_image(network, x, precision, device)
    network.memory, network.timesteps = mode, timesteps
    return found


def _bytes_per_image(network: SpikingNetwork, x: Tensor, precision: Any, device: str) -> float:
    """The slope of the straight line between two sizes of a batch."""

    def forward(size: int) -> Tensor:
        images = x[torch.arange(size, device=x.device) % len(x)]
        with _autocast(precision, device):
            return network(images).sum()

    small, large = _BATCHES
    forward(small).backward()  # what is made once is there
    network.zero_grad()
    return (kept_bytes(partial(forward, large), device) - kept_bytes(partial(forward, small), device)) / (large - small)


def _autocast(precision: Any, device: str) -> AbstractContextManager[Any]:
    if not str(precision).endswith("mixed"):
        return nullcontext()
    return torch.autocast(device, torch.bfloat16 if "bf16" in str(precision) else torch.float16)


class _Clock(Callback):
    """Seconds of training steps, and of the waits for their data; and the first batch."""

    def __init__(self) -> None:
        self.batch: object = None
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._begun = self._before = self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._before = _now(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begun = _now(pl_module)
        self.waits.append(self._begun - self._before)
        self.batch = batch if self.batch is None else self.batch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._before = _now(pl_module)
        self.steps.append(self._before - self._begun)
        if self._before - self._began > _SECONDS:
            trainer.should_stop = True


def _now(module: LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _trained_a_little(module: TernarySNNModule, data: Any, clock: _Clock, device: str, precision: Any) -> Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on loggers and numbers of steps, of which there are none and few here
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=precision, max_epochs=1,
            limit_train_batches=1 + _STEPS, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
            min_epochs=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return trainer


def _median(times: list[float]) -> float:
    """Of all but the first, where there are others."""
    return statistics.median(times[1:] or times)


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _free_bytes(device: str) -> int | None:
    """What is left for a batch; what this process has cached counts as free."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    information = Path("/proc/meminfo")
    if not information.exists():
        return None
    lines = dict(line.split(":", 1) for line in information.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
