"""What a network does with one input, spike by spike: recorded, and shown as one HTML page; ``tspike show``."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._observe import observing
from ..files.input_spec import InputSpec
from ..functional import per_channel
from ..network.spiking_network import SpikingNetwork
from .energy import EnergyReport, measure_energy
from .html_page import data_uri, write_page

__all__ = ["LayerSpikes", "SpikeRecord", "record_spikes", "write_spike_page"]

CHANNELS = 16
"""Channels of a layer that are shown, those that fire most; the page says of how many."""
TOP = 5
"""Classes whose probabilities are drawn."""
_STEPS_TO_A_THRESHOLD = 24  # of the membrane potential, as a whole number of 8 bits: up to 5 thresholds


@dataclass(frozen=True)
class LayerSpikes:
    """One layer of neurons.

    Attributes:
        name: Its name in the model; with a number where it is called again.
        channels: How many it has.
        shown: Which of them are here.
        spikes: Whole numbers from -D to D, int8 [T, shown, H, W]; of a layer without height and width, H = W = 1.
        membrane: Membrane potentials before firing, in thresholds, float32 likewise.
        positive: Share of all its neurons that send a positive spike, by time step.
        negative: Likewise for negative ones.
        is_ternary: Whether it can send negative spikes.
    """

    name: str
    channels: int
    shown: tuple[int, ...]
    spikes: Tensor
    membrane: Tensor
    positive: tuple[float, ...]
    negative: tuple[float, ...]
    is_ternary: bool


@dataclass(frozen=True)
class SpikeRecord:
    """What a network did with one input.

    Attributes:
        image: The input, float32 [C, H, W], or frames [T, C, H, W].
        probabilities: Of the classes by the logits up to each time step, [T, K].
        layers: The layers of neurons, in the order of their first call.
        energy: Operations by layer.
    """

    image: Tensor
    probabilities: Tensor
    layers: tuple[LayerSpikes, ...]
    energy: EnergyReport

    @property
    def decision(self) -> int:
        """The class it decides on."""
        return int(self.probabilities[-1].argmax())

    @property
    def decided_at(self) -> int:
        """The time step, from 1 to T, from which on the likeliest class is that one."""
        others = (self.probabilities.argmax(1) != self.decision).nonzero()
        return int(others.max()) + 2 if len(others) else 1


@torch.no_grad()
def record_spikes(network: SpikingNetwork, image: Tensor, *, channels: int = CHANNELS) -> SpikeRecord:
    """Run a network on one input and keep what its neurons did.

    Args:
        network: In eval mode, folded or not; of amplitudes, spikes are freed.
        image: [C, H, W], or frames [T, C, H, W], as the network gets them, without a batch.
        channels: How many channels of a layer to keep at most: those that fire most.

    Raises:
        ValueError: ``channels`` is less than 1, or the input is not what the network takes.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels!r}")
    if image.ndim not in (3, 4):
        raise ValueError(f"one input is an image [C, H, W] or frames [T, C, H, W], got shape {tuple(image.shape)}")
    layers: dict[str, LayerSpikes] = {}

    def look(name: str, neuron: Any, x: Tensor, out: Tensor) -> None:
        spikes = (out / per_channel(torch.as_tensor(neuron.amplitude), out)).round()
        u = neuron.membrane_potential(x)
        u = u / per_channel(neuron.firing_threshold, u)
        calls = sum(known == name or known.startswith(f"{name} (") for known in layers)
        name = f"{name} ({calls + 1})" if calls else name
        layers[name] = _layer(name, _maps(spikes, neuron.timesteps), _maps(u, neuron.timesteps), channels, neuron)

    with observing(network.neurons(), look):
        logits = network(image[None], per_step=True)[:, 0].float()  # [T, K]
    steps = torch.arange(1, len(logits) + 1)[:, None]
    probabilities = (logits.cumsum(0) / steps).softmax(1)
    return SpikeRecord(image, probabilities, tuple(layers.values()), measure_energy(network, image[None]))


def _maps(x: Tensor, timesteps: int) -> Tensor:
    """[T, C, H, W] of what one input gives, [T, C, ...]."""
    x = x.detach().float().reshape(timesteps, *x.shape[1:])
    if x.ndim == 3:  # tokens [T, N, C]: one map
        return x[:, None]
    return x[:, :, None, None] if x.ndim == 2 else x


def _layer(name: str, spikes: Tensor, u: Tensor, channels: int, neuron: Any) -> LayerSpikes:
    fired = (spikes != 0).float().mean((0, 2, 3))
    shown = sorted(fired.argsort(descending=True, stable=True)[:channels].tolist())
    return LayerSpikes(
        name=name,
        channels=spikes.shape[1],
        shown=tuple(shown),
        spikes=spikes[:, shown].to(torch.int8),
        membrane=u[:, shown],
        positive=tuple((spikes > 0).float().mean((1, 2, 3)).tolist()),
        negative=tuple((spikes < 0).float().mean((1, 2, 3)).tolist()),
        is_ternary=neuron.is_ternary,
    )


def write_spike_page(
    record: SpikeRecord,
    output: str | Path,
    *,
    title: str,
    class_names: Sequence[str] | None = None,
    spec: InputSpec | None = None,
) -> Path:
    """Write a page that needs nothing else: the input, the decision over time, spike maps, membranes, operations.

    Args:
        record: What is shown.
        output: The file.
        title: Its heading, such as what network sees what file.
        class_names: Names of the classes in order; by default their numbers.
        spec: Says how the image was normalised.

    Returns:
        The file.

    Raises:
        ValueError: There is not a name for every class.
        OSError: The page cannot be written.
    """
    classes = record.probabilities.shape[1]
    names = list(class_names) if class_names else [str(number) for number in range(classes)]
    if len(names) != classes:
        raise ValueError(f"class_names must have a name for each of {classes} classes, got {len(names)}")
    energy = record.energy
    top = record.probabilities[-1].topk(min(TOP, classes)).indices.tolist()
    data = {
        "timesteps": len(record.probabilities),
        "stepsToAThreshold": _STEPS_TO_A_THRESHOLD,
        "classes": [{"name": names[k], "p": _rounded(record.probabilities[:, k])} for k in top],
        "best": [names[k] for k in record.probabilities.argmax(1).tolist()],
        "input": [_data_uri(picture) for picture in _pictures(record.image, spec)],
        "layers": [_packed(layer) for layer in record.layers],
    }
    most = max((max(layer.synops, layer.macs, layer.ann_macs) for layer in energy.layers), default=1.0) or 1.0
    return write_page(
        Path(output),
        "spikes.html.jinja",
        title=title,
        record=record,
        decision=names[record.decision],
        probability=float(record.probabilities[-1, record.decision]),
        rate=_mean_rate(record),
        energy=energy,
        most=most,
        # "<" could end the script that it stands in
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _mean_rate(record: SpikeRecord) -> float:
    """Share of (neuron, time step) pairs that fire, over all layers."""
    fired = total = 0.0
    for layer in record.layers:
        neurons = layer.channels * layer.spikes[0, 0].numel()
        fired += neurons * (sum(layer.positive) + sum(layer.negative)) / len(layer.positive)
        total += neurons
    return fired / total if total else 0.0


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def _packed(layer: LayerSpikes) -> dict[str, Any]:
    _, shown, height, width = layer.spikes.shape
    membrane = (layer.membrane * _STEPS_TO_A_THRESHOLD).nan_to_num(0).round().clamp(-127, 127).to(torch.int8)
    return {
        "name": layer.name,
        "channels": layer.channels,
        "shown": list(layer.shown),
        "size": [shown, height, width],
        "most": max(1, int(layer.spikes.abs().max())),
        "positive": [round(rate, 5) for rate in layer.positive],
        "negative": [round(rate, 5) for rate in layer.negative],
        "isTernary": layer.is_ternary,
        "spikes": _deflated(layer.spikes),
        "membrane": _deflated(membrane),
    }


def _deflated(numbers: Tensor) -> str:
    return base64.b64encode(zlib.compress(numbers.contiguous().numpy().tobytes(), 9)).decode()


def _pictures(image: Tensor, spec: InputSpec | None) -> list[Image.Image]:
    """The image, or one picture of every frame: events of both polarities in red and blue."""
    if image.ndim == 3:
        return [_picture(image, spec)]
    if image.shape[1] != 2:
        return [_picture(frame, None) for frame in image]
    most = float(image.abs().max()) or 1.0
    on, off = ((image[:, polarity].clamp(min=0) / most).sqrt().numpy() for polarity in (1, 0))
    white = np.ones_like(on)
    colours = np.stack([white - off * 0.8, white - 0.75 * np.maximum(on, off), white - on * 0.8], -1)
    return [Image.fromarray((frame * 255).clip(0, 255).astype(np.uint8)) for frame in colours]


def _picture(image: Tensor, spec: InputSpec | None) -> Image.Image:
    x = image.float()
    if spec is not None and spec.mean is not None and spec.std is not None:
        x = x * torch.tensor(spec.std).view(-1, 1, 1) + torch.tensor(spec.mean).view(-1, 1, 1)
    else:  # what is known is that it has a least and a greatest value
        low, high = float(x.min()), float(x.max())
        x = (x - low) / (high - low or 1.0)
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else Image.fromarray(pixels[0])


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return data_uri("image/png", file.getvalue())
