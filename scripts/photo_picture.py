"""Predictions of several networks over one photo, side by side, with a legend.

    python scripts/photo_picture.py docs/images/photo.jpg \
        "student alone=zoo/facade_mobilenetv2_050_alone.safetensors" \
        "student with teacher and photos=zoo/facade_mobilenetv2_050_photos.safetensors"

The photo is ``china.jpg`` of scikit-learn (danielbuechele, CC BY 2.0) unless --photo names another.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from aicsd.errors import UserError
from aicsd.files import atomic_path
from aicsd.images import UInt8Array, colorize, read_image
from aicsd.models import load_model
from aicsd.visualization.figures import new_figure
from aicsd.visualization.panels import add_legend

WIDTH = 11.0
"""Width of the picture in inches, at 110 pixels per inch."""
COLUMNS = 2


def photo(path: Path | None) -> UInt8Array:
    if path is not None:
        return read_image(path)
    from sklearn.datasets import load_sample_image

    image: UInt8Array = load_sample_image("china.jpg")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="TITLE=MODEL")
    parser.add_argument("--photo", type=Path)
    options = parser.parse_args()
    image = photo(options.photo)
    pictures = {"photo": image}
    shown: dict[str, tuple[int, int, int]] = {}
    for entry in options.models:
        title, _, reference = entry.partition("=")
        model = load_model(reference)
        found = model.predict(image)
        colors = colorize(found, model.classes.palette)
        pictures[title] = ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)
        seen = set(np.unique(found).tolist())
        legend = enumerate(zip(*model.classes, strict=True))
        shown |= {name: color for number, (name, color) in legend if number in seen}
    rows = -(-len(pictures) // COLUMNS)
    cell = WIDTH / COLUMNS
    figure = new_figure(WIDTH, rows * (cell * image.shape[0] / image.shape[1] + 0.3) + 0.4)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
        axis.imshow(picture)
        axis.set_title(title)
    add_legend(figure, list(shown.items()))
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, dpi=110, format="jpg", pil_kwargs={"quality": 85})
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"photo_picture: error: {error}")
