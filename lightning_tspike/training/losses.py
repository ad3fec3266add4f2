"""Losses on the logits of all time steps, and on membrane potentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from .._observe import observing
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron

__all__ = ["distillation_loss", "membrane_regularization", "tet_loss"]


def tet_loss(
    logits: Tensor, labels: Tensor, *, weight: float = 1e-3, target: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Temporal efficient training (Deng et al. 2022, arXiv 2202.11946): every time step must classify by itself.

        L = (1 - weight) * 1/T sum_t CE(o_t, y) + weight * 1/T sum_t MSE(o_t, target)

    Args:
        logits: o, shape [T, B, K].
        labels: y, shape [B], whole numbers in [0, K), or probabilities [B, K], rows that sum to 1.
        weight: Share of the term that keeps logits from growing, lambda in the paper, in [0, 1].
        target: What it draws logits to, phi in the paper.
        label_smoothing: Of the cross-entropy, in [0, 1].

    Returns:
        The loss, shape [].

    Raises:
        ValueError: ``weight`` is outside [0, 1], or the shapes do not fit.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight!r}")
    if logits.ndim != 3 or labels.shape not in (logits.shape[1:2], logits.shape[1:]):
        raise ValueError(
            f"expected logits [T, B, K] and labels [B] or [B, K], got shapes {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    repeated = labels.repeat(len(logits), *[1] * (labels.ndim - 1))
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), repeated, label_smoothing=label_smoothing)
    return (1 - weight) * cross_entropy + weight * F.mse_loss(logits, torch.full_like(logits, target))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Match the softened class probabilities of a teacher (Hinton et al. 2015, arXiv 1503.02531).

        L = tau^2 * 1/B sum_b KL(softmax(z / tau) || softmax(o / tau))

    The factor tau^2 keeps the size of the gradient when the temperature tau changes.

    Args:
        logits: o, shape [B, K].
        teacher_logits: z, shape [B, K]; no gradient flows into it.
        temperature: tau > 0.

    Returns:
        The loss, shape [].

    Raises:
        ValueError: ``temperature`` is not positive, or the shapes differ.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if logits.shape != teacher_logits.shape or logits.ndim != 2:
        raise ValueError(
            f"expected logits of network and teacher of one shape [B, K], got {tuple(logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    ours, theirs = (z.div(temperature).log_softmax(-1) for z in (logits, teacher_logits.detach()))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


@contextmanager
def membrane_regularization(network: SpikingNetwork) -> Iterator[list[Tensor]]:
    """Temporal membrane potential regularisation, TMPR (arXiv 2601.15598): keep early membrane potentials small.

        L = 1/N sum_n l_n,   l_n = 1/T sum_{t=1..T} 1/t * mean(u_{n,t}^2)

    with u_{n,t} the membrane potentials of layer n of N before firing at time step t. To be added to a loss with a
    weight; that paper has 0.05 for still images and 0.01 for events. Neurons integrate twice within.

    Args:
        network: The network that is run within.

    Yields:
        A list that gets the l_n, shape [], as the layers run.

    Example:
        >>> with membrane_regularization(network) as terms:
        ...     logits = network(images)
        >>> loss = cross_entropy(logits, labels) + 0.05 * torch.stack(terms).mean()
    """
    if network.memory == "lean":
        raise ValueError("memory='lean' keeps no membrane potentials to regularise: set network.memory to 'packed'")
    terms: list[Tensor] = []

    def listen(_name: str, neuron: SpikingNeuron, x: Tensor, _spikes: Tensor) -> None:
        u = neuron.membrane_potential(x)
        mean_square = u.square().unflatten(0, (neuron.timesteps, -1)).flatten(1).mean(1)  # [T]
        terms.append((mean_square / torch.arange(1, neuron.timesteps + 1, device=u.device)).mean())

    with observing(network.neurons(), listen):
        yield terms
