from .agreement import ExportError as ExportError
from .exporting import Exported as Exported
from .exporting import export as export
from .integer_network import IntegerNetwork as IntegerNetwork
from .integer_network import IntegerReport as IntegerReport
from .integer_network import integer as integer
from .streaming import Stream as Stream
from .streaming import step as step
from .streaming import stream as stream
from .substeps import SubstepNetwork as SubstepNetwork
from .substeps import substeps as substeps

__all__ = [
    "ExportError",
    "Exported",
    "IntegerNetwork",
    "IntegerReport",
    "Stream",
    "SubstepNetwork",
    "export",
    "integer",
    "step",
    "stream",
    "substeps",
]
