"""Predictions of image files, as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from aicsd.data.base import IMAGE_SUFFIXES, list_images, read_image
from aicsd.errors import UserError
from aicsd.models import Segmenter
from aicsd.visualization import overlay, save_ids, save_image


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files, and those directly in the folders, of ``places``.

    Raises:
        UserError: a place that is not there, or a folder without images.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = list_images(place)
            if not inside:
                raise UserError(f"no images in {place} (looked for {' '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"no image or folder at {place}")
    repeated = [path for path in found if sum(other.stem == path.stem for other in found) > 1]
    if repeated:
        raise UserError(
            f"two images are called {repeated[0].stem!r} ({repeated[0]} and {repeated[1]}); their "
            "results would have one name: predict them into different folders"
        )
    return found


def predict_files(
    model: Segmenter, images: Sequence[Path], out: Path, opacity: float = 0.5
) -> Iterator[Path]:
    """Write ``NAME.png`` (class ids, palette PNG) and ``NAME_overlay.png`` at the image's size.

    Yields:
        The class-id file of every image, when it is written.
    """
    for path in images:
        image = read_image(path)
        mask = model.predict(image)
        ids = out / f"{path.stem}.png"
        save_image(
            overlay(image, mask, model.classes.palette, opacity), out / f"{path.stem}_overlay.png"
        )
        save_ids(mask, model.classes.palette, ids)
        yield ids
