"""Pictures of masks, of predictions, and of runs; the report."""

from aicsd.images import colorize, overlay, save_ids, save_image
from aicsd.visualization.panels import save_panels

__all__ = ["colorize", "overlay", "save_ids", "save_image", "save_panels"]
