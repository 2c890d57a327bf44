"""Shared parts of the matplotlib figures: size, colours, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aicsd.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours for any colour vision (Okabe and Ito, 2008)."""
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
MINUS = "\N{MINUS SIGN}"
DPI = 100


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches (100 pixels each), tied to no window system."""
    # imported here: matplotlib is slow to load, and only pictures need it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write ``path``, which has no suffix, as PNG and as SVG; the two files."""
    from matplotlib import rc_context

    # laid out once, and not by a drawing of its own for each file
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    # with_suffix would cut the name of an image at its last dot
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        # a fixed salt, no date: the same picture gives the same file
        with atomic_path(file) as temporary, rc_context({"svg.hashsalt": path.name}):
            kind = file.suffix[1:]
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(temporary, dpi=DPI, format=kind, metadata=metadata)
    return files


def trim(axis: Axes) -> None:
    """Leave only the two lines that carry the scales."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
