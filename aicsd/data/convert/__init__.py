"""Conversion of annotation exports into the folder layout: one file a format."""

from aicsd.data.convert.conversion import FORMATS, convert
from aicsd.data.convert.report import Conversion
from aicsd.data.convert.source import Format
from aicsd.data.convert.write import Empty

__all__ = ["FORMATS", "Conversion", "Empty", "Format", "convert"]
