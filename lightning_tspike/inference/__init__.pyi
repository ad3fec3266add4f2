from .agreement import ExportError as ExportError
from .exporting import Exported as Exported
from .exporting import export as export

__all__ = ["ExportError", "Exported", "export"]
