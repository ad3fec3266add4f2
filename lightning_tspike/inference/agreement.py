"""Whether an exported file computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..graph.tracing import copy_of
from ..network.spiking_network import SpikingNetwork

__all__ = ["Agreement", "ExportError", "compare", "first_line"]

TOLERANCE = 1e-5
"""Greatest deviation of the logits, relative to the greatest of them, that passes for rounding in float32."""

_SEVERAL = 3  # images in a batch; files are made with 2
_BATCHES = 5  # are run at most


class ExportError(RuntimeError):
    """The network cannot be written in this form, or the file does not agree with it; the message says why."""


class Agreement(NamedTuple):
    """What :func:`compare` found.

    Attributes:
        deviation: Greatest deviation of the logits, relative to the greatest logit, among images that agree.
        images: How many images were compared.
        agreeing: How many of them agree to within :data:`TOLERANCE`.
    """

    deviation: float
    images: int
    agreeing: int

    def __str__(self) -> str:
        of = f"{self.images} inputs" if self.agreeing == self.images else f"{self.agreeing} of {self.images} inputs"
        rest = "" if self.agreeing == self.images else ", on the others rounding decides whether a neuron fires"
        return f"logits within {self.deviation:.1e} of PyTorch's on {of}{rest}"


def compare(
    network: SpikingNetwork, run: Callable[[Tensor], Tensor], shape: Sequence[int], *, per_step: bool
) -> Agreement:
    """Run a file and the network on noise, in batches of one and of several, and compare their logits.

    In a large network some membrane potential out of millions lies so near its threshold that the order of a sum
    decides whether the neuron fires; one spike then moves the logits. Such a network deviates from itself, computed in
    float64, as well. Of it, some images must agree in every spike, so more of them are run; of others, all must.

    Args:
        network: What the file was made from, in eval mode and float32.
        run: The file: images or frames to logits [B, K], or of every step, [T, B, K], with ``per_step``.
        shape: Of an image [C, H, W] or of frames [T, C, H, W].
        per_step: Whether logits of every step are compared.

    Raises:
        ExportError: They differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    exact_network = copy_of(network).double()
    deviations: list[Tensor] = []
    own: list[Tensor] = []
    for _ in range(_BATCHES):
        x = torch.randn(1 + _SEVERAL, *shape, generator=generator)
        with torch.no_grad():
            expected = network(x, per_step=per_step)
            exact = exact_network(x.double(), per_step=per_step).float()
        try:
            got = torch.cat([run(x[:1]), run(x[1:])], dim=-2)
        except Exception as error:  # whatever the program that runs it raises
            raise ExportError(f"the file cannot be run: {first_line(error)}; it was not kept") from error
        if got.shape != expected.shape:
            raise ExportError(f"the file gives logits of shape {list(got.shape)}, PyTorch {list(expected.shape)}")
        deviations.append(_deviations(got, expected))
        own.append(_deviations(exact, expected))
        if (deviations[-1] <= TOLERANCE).all():
            break
    seen = torch.stack(deviations)  # [batches, B]
    agrees = seen <= TOLERANCE
    is_bound_by_rounding = bool((torch.stack(own) > TOLERANCE).any())
    # not the first images of batches alone: a file that mixes up images may be right about these
    if not agrees[-1].all() and not (is_bound_by_rounding and agrees[:, 2:].any()):
        raise ExportError(
            "the file does not compute what the network computes: logits deviate from PyTorch's on "
            f"{int((~agrees).sum())} of {agrees.numel()} inputs, by up to {seen.max().item():.1e} of the greatest "
            f"(allowed: {TOLERANCE:.0e}); it was not kept"
        )
    return Agreement(seen[agrees].max().item(), agrees.numel(), int(agrees.sum()))


def first_line(error: BaseException) -> str:
    """What an error says first, of the one that all others come from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _deviations(got: Tensor, expected: Tensor) -> Tensor:
    """Greatest deviation of each image, [..., B, K] -> [B], relative to the greatest logit of all."""
    difference = (got - expected).abs().amax(-1)
    return difference.reshape(-1, difference.shape[-1]).amax(0) / expected.abs().max().clamp_min(1e-30)
