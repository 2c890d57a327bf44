"""aicsd data convert."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aicsd.data.convert import FORMATS

NOTES = {
    "format": ", ".join(known.name for known in FORMATS),
    "classes": ", ".join(known.name for known in FORMATS if known.takes_table),
}
"""Text after the explanations in the help."""


def convert(
    source: str,
    *,
    out: str,
    format: str | None = None,
    val: float = 0.1,
    seed: int = 0,
    classes: str | None = None,
    background: bool = True,
    empty: Literal["unlabelled", "background", "leave_out"] = "unlabelled",
) -> int:
    """Convert the export of an annotation tool into a dataset folder.

    Args:
        source: folder of the export.
        out: new folder for the dataset.
        format: format of the export, by default recognised from the files.
        val: share of the images for the split val, if the source has none.
        seed: seed for the choice of these images.
        classes: table of class names and colours (name,r,g,b per line), for formats without one.
        background: make pixels outside all objects a class; false: ignore them.
        empty: use of images without annotation: split unlabelled, background only, or leave_out.
    """
    from aicsd.data.convert import convert as write_folder
    from aicsd.terminal import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("images", total=None, note="")
        result = write_folder(
            Path(source),
            Path(out),
            format=format,
            val=val,
            seed=seed,
            classes=None if classes is None else Path(classes),
            background=background,
            empty=empty,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(result.text())
    return 0
