"""What some of Lightning's strategies cannot do: in those that shard weights, no process has all of any weight."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

__all__ = ["require_whole_weights"]


def require_whole_weights(strategy: Strategy, what: str, way_out: str) -> None:
    """Refuse what needs whole weights, where a strategy shards them.

    Args:
        strategy: Of the trainer.
        what: The option or callback, and what it does with whole weights.
        way_out: What else can be done.

    Raises:
        MisconfigurationException: The strategy is another one than DDP or a single device.
    """
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise MisconfigurationException(
            f"{what} whole weights, which {type(strategy).__name__} does not keep; train with one device or DDP, or "
            f"{way_out}"
        )
