"""What Lightning prints and no user of ``tspike`` can do anything with, left out."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quieten_lightning"]

_NOISE = ("💡 Tip:", "TPU available: False", "GPU available: False")


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be printed."""
        return not record.getMessage().startswith(_NOISE)


def quieten_lightning() -> None:
    """Leave out tips for other products, devices that are not there, and a warning of torch's for Lightning's code."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if not any(isinstance(known, _Filter) for known in logger.filters):
        logger.addFilter(_Filter())
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
