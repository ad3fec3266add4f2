"""A network as a graph: tracing, what each operation does to gauges, and which spikes share one."""

from .gauges import GaugeClasses, TrainingScales
from .tracing import TraceError, trace

__all__ = ["GaugeClasses", "TraceError", "TrainingScales", "trace"]
