"""What stands for a tensor of a network's graph in that of its integer runtime.

========== ======================================================= ====================================================
form       stands for                                              where it comes from
========== ======================================================= ====================================================
``Bytes``  gauge * (byte - zero point), of whole numbers           neurons; what moves, adds, pools them
``Real``   itself, float32                                         layers with weights, and all that has no integer form
``Total``  sum of scale * form, + shift, not computed yet          additions and batch norms, until someone needs it
``Mean``   means of maps of bytes, not computed yet                pools over whole maps, until someone needs it
========== ======================================================= ====================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

__all__ = ["ONE", "ZERO", "Bytes", "Form", "Mean", "Real", "Total", "is_same_number", "product"]


@dataclass(frozen=True)
class Bytes:
    """gauge * (byte - zero_point); the whole numbers are from ``low`` to ``high``.

    Attributes:
        node: The bytes, in the new graph.
        zero_point: The byte that is 0, at least -low.
        low: Smallest whole number.
        high: Largest whole number.
        gauge: Positive, [] or [C].
    """

    node: fx.Node
    zero_point: int
    low: int
    high: int
    gauge: Tensor


@dataclass(frozen=True)
class Real:
    """A float32 tensor of the new graph, or something that is no tensor."""

    node: fx.Node


@dataclass(frozen=True)
class Total:
    """Sum of scale * form, + shift.

    Attributes:
        terms: Forms of the same shape, and their scales: [] or [C].
        shift: [] or [C].
    """

    terms: tuple[tuple[Bytes | Real, Tensor], ...]
    shift: Tensor


@dataclass(frozen=True)
class Mean:
    """The means of whole maps, [N, C, 1, 1], or [N, C] where ``is_flat``."""

    maps: Bytes
    is_flat: bool


Form = Bytes | Real | Total | Mean
ONE, ZERO = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product, and :data:`ONE` itself where both are."""
    return b if a is ONE else a if b is ONE else a * b


def is_same_number(a: Tensor, b: Tensor) -> bool:
    """Whether both are one number for all channels, and the same."""
    return a.numel() == b.numel() == 1 and bool(a == b)
