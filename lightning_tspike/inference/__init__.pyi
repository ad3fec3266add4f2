from .agreement import ExportError as ExportError
from .exporting import Exported as Exported
from .exporting import export as export
from .integer_network import IntegerNetwork as IntegerNetwork
from .integer_network import IntegerReport as IntegerReport
from .integer_network import integer as integer

__all__ = ["ExportError", "Exported", "IntegerNetwork", "IntegerReport", "export", "integer"]
