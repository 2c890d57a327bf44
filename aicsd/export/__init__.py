"""A trained model as a file for the runtimes of :data:`aicsd.formats.FORMATS`, float or INT8."""

from aicsd.export.check import Parity
from aicsd.export.graph import Output
from aicsd.export.write import check_target, export_model, require_classes

__all__ = ["Output", "Parity", "check_target", "export_model", "require_classes"]
