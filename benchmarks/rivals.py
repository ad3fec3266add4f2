"""Neurons and networks of other libraries, and plainly written ones, behind one interface for comparisons.

=========================== ==================================================================== ======= ===========
name                        what it is                                                           spikes  surrogate
=========================== ==================================================================== ======= ===========
eager                       :class:`EagerTernaryLIF`: one PyTorch operation after another        ternary rectangular
SpikingJelly TernaryLIFNode ``spikingjelly.activation_based.neuron.TernaryLIFNode``, multi-step  ternary rectangular
SpikingJelly LIFNode        ``spikingjelly.activation_based.neuron.LIFNode``, multi-step         binary  rectangular
snnTorch Leaky              ``snntorch.Leaky``, called once for each time step                   binary  arctan
Norse LIF                   ``norse.torch.LIF``, called once for a sequence                      binary  SuperSpike
=========================== ==================================================================== ======= ===========

Decay 0.25, threshold 0.5, hard reset and amplitude 1 in all of them: they fire as ``ternary_lif`` and ``binary_lif`` of
:mod:`lightning_tspike.functional` do, up to rounding, but snnTorch and Norse only above the threshold. Gradients are
the libraries' own: snnTorch detaches the reset, and in SpikingJelly the reset passes a gradient below the threshold,
too. SpikingJelly's ternary neuron has no learned amplitude, and on every device it is PyTorch's operations.

A library is imported where it is used; one that is not installed is left out, and :func:`missing` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_tspike.functional import DECAY, THRESHOLD, per_channel
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.neurons import TernaryLIF

Layer: TypeAlias = Callable[[Tensor], Tensor]
LIBRARIES = {"SpikingJelly": "spikingjelly", "snnTorch": "snntorch", "Norse": "norse"}


def missing() -> list[str]:
    """Names of the libraries that are not installed."""
    return [name for name, module in LIBRARIES.items() if find_spec(module) is None]


def neurons(timesteps: int) -> dict[str, Layer]:
    """One layer of neurons for each row of the table above whose library is there.

    Args:
        timesteps: Number of time steps T.

    Returns:
        By name, functions from currents [T, B, ...] to spikes of the same shape. They are differentiable, and no call
        knows of the one before.
    """
    eager = EagerTernaryLIF(timesteps, amplitude="fixed")
    layers: dict[str, Layer] = {"eager": lambda x: eager(x.flatten(0, 1)).view_as(x)}
    absent = missing()
    if "SpikingJelly" not in absent:
        layers |= {f"SpikingJelly {name}": _jelly_layer(name) for name in ("TernaryLIFNode", "LIFNode")}
    if "snnTorch" not in absent:
        layers["snnTorch Leaky"] = _snntorch_layer()
    if "Norse" not in absent:
        layers["Norse LIF"] = _norse_layer()
    return layers


class _Spike(torch.autograd.Function):
    """Potentials u and a fixed threshold theta -> {-1, 0, 1}; ds/du is 1 / (2 theta) where |u| < 2 theta, else 0."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(u, threshold)
        return (u >= threshold).to(u.dtype) - (u <= -threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        u, threshold = ctx.saved_tensors
        return grad * (u.abs() < 2 * threshold).to(u.dtype) / (2 * threshold), None


class EagerTernaryLIF(TernaryLIF):
    """:class:`lightning_tspike.neurons.TernaryLIF`, computed as published training code mostly does: a loop over time.

    For hard reset, rectangular surrogate and fixed threshold. Computes in the dtype of its input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Input current [T*B, ...] ([B, ...] with ``static_input``) to spikes a * s [T*B, ...]."""
        currents = [x] * self.timesteps if self.static_input else x.chunk(self.timesteps)
        threshold, spikes, v = per_channel(self.threshold, x), [], torch.zeros_like(currents[0])
        for current in currents:
            u = self.decay * v + current
            s = _Spike.apply(u, threshold)
            v = u * (1 - s.abs())
            spikes.append(s)
        out = torch.cat(spikes)
        return out if self.raw_amplitude is None else out * per_channel(self.amplitude, x)


def use_eager_neurons(network: SpikingNetwork) -> SpikingNetwork:
    """Let the ternary neurons of a network compute one PyTorch operation after another, in place.

    Args:
        network: Parameters, buffers and their names stay as they are.

    Returns:
        The same network.

    Raises:
        ValueError: A neuron is of another kind than :class:`EagerTernaryLIF` can stand in for.
    """
    for name, neuron in network.neurons().items():
        is_plain = type(neuron) in (TernaryLIF, EagerTernaryLIF) and neuron.surrogate == "rectangular"
        if not is_plain or neuron.reset != "hard" or neuron.detach_reset or neuron.threshold.requires_grad:
            raise ValueError(f"{name} is no TernaryLIF with hard reset, fixed threshold, rectangle surrogate: {neuron}")
        neuron.__class__ = EagerTernaryLIF  # parameters and whatever else holds the module stay
    return network


class SpikingJellyNetwork(nn.Module):
    """A SpikingJelly network for still images, shown at every time step: [B, C, H, W] -> logits [B, K], their mean."""

    def __init__(self, model: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based.functional import reset_net

        logits = self.model(x.expand(self.timesteps, *x.shape))  # [T, B, K]
        reset_net(self.model)
        return logits.mean(0)


def spiking_resnet18(timesteps: int) -> SpikingJellyNetwork:
    """SpikingJelly's ResNet-18 with TernaryLIFNode over T time steps: images [B, 3, 224, 224] to logits [B, 1000].

    Raises:
        ImportError: SpikingJelly is not installed.
    """
    return _jelly_resnet("spiking_resnet18", timesteps)


def spiking_resnet34(timesteps: int) -> SpikingJellyNetwork:
    """SpikingJelly's ResNet-34; all else as in :func:`spiking_resnet18`."""
    return _jelly_resnet("spiking_resnet34", timesteps)


def memopt(network: SpikingJellyNetwork, example: Tensor, level: int = 1) -> SpikingJellyNetwork:
    """Apply SpikingJelly's memory optimisation to the residual blocks of a network, in place.

    Level 1 runs every block again in the backward pass instead of keeping what is inside. Levels 2 to 4 also try, on a
    CUDA device, to split blocks into layers (2), neurons into stretches of time (3), and to keep what costs nothing at
    the peak (4). Spike compression stays off: SpikingJelly's compressors have no -1, and it looks for one in the
    example alone, so that ternary spikes could silently become others.

    Args:
        network: From :func:`spiking_resnet18` or :func:`spiking_resnet34`.
        example: Images [B, 3, H, W] as the network will get them, on its device.
        level: 1 to 4.

    Returns:
        The same network; logits and gradients stay as they were.

    Raises:
        RuntimeError: ``level`` is above 1 without a CUDA device.
    """
    from spikingjelly.activation_based import memopt, neuron
    from spikingjelly.activation_based.model.spiking_resnet import BasicBlock

    if level > 1 and example.device.type != "cuda":
        raise RuntimeError(f"level {level} measures memory on a CUDA device, and the example is on {example.device}")
    return memopt.optimize_memory(
        network, BasicBlock, lambda network: network(example), level=level, compress=False,
        split_fn=lambda module: list(module.children()), can_chunk=lambda module: isinstance(module, neuron.BaseNode),
    )  # fmt: skip


def _jelly_node(name: str) -> nn.Module:
    from spikingjelly.activation_based import neuron, surrogate

    # A step leaves v - v / tau of v. With alpha = 1 the rectangle is 1 = 2 theta wide, around each of the thresholds.
    return getattr(neuron, name)(
        tau=1 / (1 - DECAY), decay_input=False, v_threshold=THRESHOLD, v_reset=0.0, step_mode="m",
        surrogate_function=surrogate.Rect(alpha=1.0),
    )  # fmt: skip


def _jelly_layer(name: str) -> Layer:
    node = _jelly_node(name)

    def run(x: Tensor) -> Tensor:
        spikes = node(x)
        node.reset()
        return spikes

    return run


def _jelly_resnet(name: str, timesteps: int) -> SpikingJellyNetwork:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model import spiking_resnet

    model = getattr(spiking_resnet, name)(spiking_neuron=partial(_jelly_node, "TernaryLIFNode"))
    functional.set_step_mode(model, "m")
    return SpikingJellyNetwork(model, timesteps)


def _snntorch_layer() -> Layer:
    import snntorch

    leaky = snntorch.Leaky(beta=DECAY, threshold=THRESHOLD, reset_mechanism="zero")

    def run(x: Tensor) -> Tensor:
        spikes, v = [], torch.zeros_like(x[0])
        for current in x:
            s, v = leaky(current, v)
            spikes.append(s)
        leaky.mem = x.new_empty(0)  # it would keep the graph
        return torch.stack(spikes)

    return run


def _norse_layer() -> Layer:
    from norse.torch import LIF, LIFParameters

    # With steps of 1 the synaptic current is gone after each, and v <- v + rate * (x - v): rate times our potential.
    rate = 1 - DECAY
    parameters = {"tau_syn_inv": 1.0, "tau_mem_inv": rate, "v_th": rate * THRESHOLD}
    layer = LIF(LIFParameters(**{name: torch.tensor(value) for name, value in parameters.items()}), dt=1.0)
    return lambda x: layer(x)[0]
