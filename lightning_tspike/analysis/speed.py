"""Measure how fast a network runs: every runtime that is there, beside the ANN of the same architecture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from .._observe import observing
from .._tables import new_table, table_text
from ..network.spiking_network import SpikingNetwork
from .energy import EnergyReport, measure_energy
from .runtimes import FLOAT32, RUNTIMES, ann_of, prepare
from .spikes import FiringRate, firing_rates
from .timing import in_turn, machine, ratio

__all__ = ["LayerSpikes", "SpeedReport", "count_spikes", "measure_speed"]

_UNCOUNTED = 2  # rounds before those that count
_SAMPLES = 8  # of noise, at least
_EVENTS = 0.5  # of noise, a pixel and frame


@dataclass(frozen=True)
class LayerSpikes:
    """What one layer of neurons sends.

    Attributes:
        neurons: How many neurons it has for an image.
        firing_rate: How often they fired.
        spikes: Spikes per image (or sequence of frames), of all time steps.
    """

    neurons: int
    firing_rate: FiringRate
    spikes: float


@dataclass(frozen=True)
class SpeedReport:
    """How fast a network runs, and how much it spikes; ``print`` shows it as tables.

    Attributes:
        input: What it was shown, in words.
        samples: How many images (or sequences of frames) spikes and operations are measured on.
        batch_size: How many of them a call is timed with.
        timesteps: Time steps T of each.
        input_size: (C, H, W) of an image or a frame.
        machine: Processor or GPU, threads, versions.
        times: Seconds of each call, by runtime. The calls of a round are one after the other, so what slows the machine
            down slows all of them.
        ann_times: The same of the ANN: one pass for an image, T passes for T frames.
        remarks: What a runtime says of the network, such as what the integer one leaves in float32.
        missing: Why the other runtimes are not there, by name.
        layers: The layers of neurons, by name.
        energy: Operations per image, of the network as it is: where it averages spikes, the layer behind them has MACs.
    """

    input: str
    samples: int
    batch_size: int
    timesteps: int
    input_size: tuple[int, ...]
    machine: dict[str, Any]
    times: dict[str, tuple[float, ...]] = field(repr=False)
    ann_times: dict[str, tuple[float, ...]] = field(repr=False)
    remarks: dict[str, str]
    missing: dict[str, str]
    layers: dict[str, LayerSpikes] = field(repr=False)
    energy: EnergyReport = field(repr=False)

    @property
    def fastest_ann(self) -> str:
        """The runtime in which the ANN is fastest, by its median."""
        return min(self.ann_times, key=lambda name: statistics.median(self.ann_times[name]))

    @property
    def spikes(self) -> float:
        """Spikes per image, of all layers and time steps."""
        return sum(layer.spikes for layer in self.layers.values())

    @property
    def firing_rate(self) -> float:
        """Share of all (neuron, time step, image) triples that fired."""
        return self.spikes / (self.timesteps * sum(layer.neurons for layer in self.layers.values()))

    def to_ann(self, times: Sequence[float]) -> float:
        """Times of a runtime over those of the fastest ANN: the median over the rounds."""
        return ratio(times, self.ann_times[self.fastest_ann])

    def images_per_second(self, times: Sequence[float]) -> float:
        """Throughput at this batch size, by the median of these times."""
        return self.batch_size / statistics.median(times)

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold."""
        own = {name: value for name, value in asdict(self).items() if name not in ("times", "ann_times")}
        return own | {
            "runtimes": {name: self._figures(times) for name, times in self.times.items()},
            "ann": {name: self._figures(times) for name, times in self.ann_times.items()},
            "fastest_ann": self.fastest_ann,
            "firing_rate": self.firing_rate,
            "spikes": self.spikes,
            "energy": self.energy.to_dict(),
        }

    def _figures(self, times: Sequence[float]) -> dict[str, Any]:
        return {
            "min_seconds": min(times),
            "median_seconds": statistics.median(times),
            "images_per_second": self.images_per_second(times),
            "time_to_ann": self.to_ann(times),
            "seconds": list(times),
        }

    def __str__(self) -> str:
        speeds = new_table("runtime", "fastest, ms", "median, ms", "images/s", "spikes/s", "time / ANN's")
        for name, times in self.times.items():
            speeds.add_row(name, *self._cells(times, self.spikes))
        for name, times in self.ann_times.items():
            speeds.add_row(f"ANN, {name}", *self._cells(times, None))
        spikes = new_table("layer of neurons", "neurons", "firing rate", "positive", "negative", "spikes an image")
        for name, layer in self.layers.items():
            rate = layer.firing_rate
            shares = (f"{share:.3f}" for share in (rate.total, rate.positive, rate.negative))
            spikes.add_row(name, f"{layer.neurons:,}", *shares, f"{layer.spikes:,.0f}")
        device = self.machine["processor"] if self.machine["device"] == "CPU" else self.machine["device"]
        energy = self.energy
        return (
            f"T = {self.timesteps}, batch size {self.batch_size}, {'x'.join(map(str, self.input_size))}, {device}, "
            f"threads: {self.machine['threads']}\ninput: {self.input}\n{table_text(speeds)}"
            + "".join(f"{name}: {remark}\n" for name, remark in self.remarks.items())
            + "".join(f"not measured: {name}: {why}\n" for name, why in self.missing.items())
            + f"{table_text(spikes)}per image {self.spikes:,.0f} spikes, mean firing rate {self.firing_rate:.3f}, "
            f"{energy.synops:,.0f} synaptic operations and {energy.macs:,.0f} multiply-accumulates (the ANN has "
            f"{energy.ann_macs:,.0f}); of {self.samples} samples"
        )

    def _cells(self, times: Sequence[float], spikes: float | None) -> tuple[str, ...]:
        images = self.images_per_second(times)
        return (
            f"{1e3 * min(times):.3g}",
            f"{1e3 * statistics.median(times):.3g}",
            _three_digits(images),
            "" if spikes is None else _three_digits(images * spikes),
            f"{self.to_ann(times):.2f}",
        )


@torch.no_grad()
def measure_speed(
    network: SpikingNetwork,
    samples: Tensor | None = None,
    *,
    batch_size: int = 1,
    rounds: int = 20,
    threads: int | None = None,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    input: str = "as given",
) -> SpeedReport:
    """Time a network in every runtime of :data:`lightning_tspike.analysis.runtimes.RUNTIMES`, in eval mode.

    The ANN of the same architecture is timed beside it, all in turn, round by round, behind a progress bar. Firing
    rates and operations are those of the network as it is.

    Args:
        network: Best folded; it stays as it is.
        samples: Images [N, C, H, W] or frames [N, T, C, H, W], on the network's device; best real ones, as firing rates
            depend on them. Spikes are counted on all of them, timed are the first ``batch_size``. Default is noise of
            the size that the network was trained on.
        batch_size: Images in a call.
        rounds: Calls of each runtime that count.
        threads: Threads of the CPU; default is what torch has.
        runtimes: Only these of the runtimes; the ANN is timed in all of its own.
        input: What the samples are, for the report.

    Raises:
        ValueError: ``batch_size``, ``rounds`` or ``threads`` is below 1, a runtime is unknown, there are fewer samples
            than a batch has, or they are not for this network.
    """
    for name, number in (("batch_size", batch_size), ("rounds", rounds), ("threads", threads)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}")
    if unknown := [name for name in runtimes if name not in RUNTIMES]:
        raise ValueError(f"runtimes must be among {', '.join(RUNTIMES)}; got {', '.join(map(repr, unknown))}")
    if samples is None:
        samples, input = _noise(network, max(batch_size, _SAMPLES))
    if len(samples) < batch_size:
        raise ValueError(f"a batch of {batch_size} cannot be made of {len(samples)} samples")
    was_training = network.training
    network.eval()
    try:
        with _threads(threads):
            layers = count_spikes(network, samples)
            timed = _time(network, samples[:batch_size], rounds, runtimes)
            facts = machine(samples.device.type)
        energy = measure_energy(network, samples)
    finally:
        network.train(was_training)
    return SpeedReport(
        input,
        len(samples),
        batch_size,
        network.call(samples).timesteps,
        tuple(samples.shape[-len(network.input_size) :]),
        facts,
        **timed,
        layers=layers,
        energy=energy,
    )


def _time(network: SpikingNetwork, images: Tensor, rounds: int, runtimes: Sequence[str]) -> dict[str, Any]:
    """What the report says of runtimes."""
    is_sequence = images.ndim == len(network.input_size) + 2
    console = Console(stderr=True)
    # drawn between the calls: a thread that draws would take time from what is measured
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as progress:
        bar = progress.add_task("preparing", total=len(runtimes) + len(FLOAT32))
        advance = partial(progress.update, bar, advance=1, refresh=True)
        runs, missing = prepare({name: RUNTIMES[name] for name in runtimes}, network, images, after_each=advance)
        passes = images.flatten(0, 1) if is_sequence else images
        ann_runs, _ = prepare(FLOAT32, ann_of(network), passes, after_each=advance)
        together = {(False, name): run for name, run in runs.items()} | {(True, n): run for n, run in ann_runs.items()}
        progress.reset(bar, total=len(together) * (rounds + _UNCOUNTED), description="measuring")
        times = in_turn(together, images.device.type, rounds=rounds, uncounted=_UNCOUNTED, after_each=advance)
    return {
        "times": {name: tuple(seconds) for (is_ann, name), seconds in times.items() if not is_ann},
        "ann_times": {name: tuple(seconds) for (is_ann, name), seconds in times.items() if is_ann},
        "remarks": {name: run.remark for name, run in runs.items() if run.remark},
        "missing": missing,
    }


@torch.no_grad()
def count_spikes(network: SpikingNetwork, samples: Tensor) -> dict[str, LayerSpikes]:
    """What each layer of neurons sends, by name, for images [N, C, H, W] or frames [N, T, C, H, W]."""
    outputs: dict[str, int] = {}

    def count(name: str, _neuron: Any, _x: Tensor, spikes: Tensor) -> None:
        outputs[name] = outputs.get(name, 0) + spikes.numel()

    with firing_rates(network) as rates, observing(network.neurons(), count):
        network(samples)
    steps = len(samples) * network.call(samples).timesteps
    return {
        name: LayerSpikes(outputs[name] // steps, rate, rate.total * outputs[name] / len(samples))
        for name, rate in rates.items()
    }


def _three_digits(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"


def _noise(network: SpikingNetwork, count: int) -> tuple[Tensor, str]:
    """Samples of the network's input size, and what they are in words."""
    known = network.pretrained_cfg
    size = tuple(known.get("input_size", network.input_size))
    generator = torch.Generator().manual_seed(0)
    if "frames" in known:
        counts = torch.full((count, network.timesteps, *size), _EVENTS)
        mean, std = (
            torch.tensor(known.get(key, default)).view(-1, 1, 1) for key, default in (("mean", 0.0), ("std", 1.0))
        )
        samples = (torch.poisson(counts, generator) - mean) / std
        words = f"noise, {_EVENTS} events a pixel and frame"
    else:
        samples, words = torch.randn(count, *size, generator=generator), "noise, standard normal"
    return samples.to(next(network.parameters())), words


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
