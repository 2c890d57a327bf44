"""A trained model as a file for the runtimes of :data:`aicsd.formats.FORMATS`, float or INT8."""

from aicsd.exporting.check import Parity
from aicsd.exporting.write import check_target, export_model, require_classes
from aicsd.types import Output

__all__ = ["Output", "Parity", "check_target", "export_model", "require_classes"]
