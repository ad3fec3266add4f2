from .streaming import Stream as Stream
from .streaming import step as step
from .streaming import stream as stream

__all__ = [
    "Stream",
    "step",
    "stream",
]
