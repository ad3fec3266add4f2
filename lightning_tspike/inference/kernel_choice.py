"""Which convolutions of the integer runtime skip silence: those whose input fires so seldom that this is faster."""

from __future__ import annotations

from torch import fx, nn

from ..kernels import sparse
from .integer_layers import IntegerConv

__all__ = ["choose_kernels"]

_MOST_ACTIVE = {256: 0.65, 128: 0.55, 64: 0.35}
"""By what the output channels are a multiple of, at most what share of fours may be active for the sparse kernel to be
clearly faster: `python -m benchmarks.sparse_convolution` measures where both are equal."""


def choose_kernels(model: nn.Module, graph: fx.Graph) -> tuple[dict[str, float], tuple[str, ...]]:
    """Let convolutions skip silence where they read little else on an example; all results stay the same.

    The sparse kernel takes four neighbouring input channels at a time, and does nothing where all of them are silent.

    Args:
        model: Of an integer network; changed in place.
        graph: Its graph on the example, see :meth:`lightning_tspike.inference.IntegerNetwork.trace`.

    Returns:
        Share of the fours that are active, of each convolution that has such a kernel, by name; and the names of those
        that skip silence now.
    """
    active: dict[str, float] = {}
    skipping: list[str] = []
    if not sparse.is_available():
        return active, ()
    convs = dict(model.named_modules())
    for node in graph.nodes:
        conv = convs.get(node.target) if node.op == "call_module" else None
        if not isinstance(conv, IntegerConv) or not conv.can_be_sparse:
            continue
        x = node.args[0].meta["value"].permute(0, 2, 3, 1)  # [N, H, W, C]
        share = (x != conv.zero_point).unflatten(3, (-1, 4)).any(4).float().mean().item()
        active[str(node.target)] = share
        most = next(most for channels, most in _MOST_ACTIVE.items() if len(conv.scale) % channels == 0)
        if share <= most:
            conv.become_sparse()
            skipping.append(str(node.target))
    return active, tuple(skipping)
