"""aicsd data convert."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


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
    """Write what an annotation tool exported as the layout of the dataset folder.

    Args:
        source: folder of the export.
        out: new folder that gets the dataset.
        format: coco, coco-panoptic, yolo, cvat, voc, labelme, roboflow, ade20k, huggingface or
            masks; recognised from the files without it.
        val: part of the images for the split val, where the source has none.
        seed: of the choice of these images.
        classes: table of class names and colours (name,r,g,b a line), for masks and huggingface.
        background: pixels outside all objects are a class; false ignores them.
        empty: images without annotation become the split unlabelled, background, or leave_out.
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
