"""Predictions of image files, as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from aicsd.data.base import IMAGE_SUFFIXES, list_images, read_image
from aicsd.errors import UserError
from aicsd.evaluation.inference import InferenceConfig, predict_ids
from aicsd.models import Segmenter
from aicsd.visualization import overlay, save_ids, save_image


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files, and those directly in the folders, of ``places``.

    Raises:
        UserError: a place that is not there, a folder without images, or two images whose results
            would have one name.
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
    results: dict[str, Path] = {}
    for path in found:
        for result in _result_names(path):
            if result in results:
                raise UserError(
                    f"{results[result]} and {path} would both have a result {result}; predict "
                    "them into different folders"
                )
            results[result] = path
    return found


def _result_names(image: Path) -> tuple[str, str]:
    """Of the class ids and of the overlay."""
    return f"{image.stem}.png", f"{image.stem}_overlay.png"


def predict_files(
    model: Segmenter,
    images: Sequence[Path],
    out: Path,
    opacity: float = 0.5,
    inference: InferenceConfig | None = None,
) -> Iterator[Path]:
    """Write ``NAME.png`` (class ids, palette PNG) and ``NAME_overlay.png`` at the image's size.

    Yields:
        The class-id file of every image, when it is written.

    Raises:
        UserError: a result would replace an image, or a file that cannot be read or written.
    """
    inputs = {path.resolve() for path in images}
    for path in images:
        for name in _result_names(path):
            if (out / name).resolve() in inputs:
                raise UserError(f"{out / name} is an image; choose another folder for the results")
    for path in images:
        image = read_image(path)
        mask = predict_ids(model, image, inference)
        ids, picture = (out / name for name in _result_names(path))
        save_image(overlay(image, mask, model.classes.palette, opacity), picture)
        save_ids(mask, model.classes.palette, ids)
        yield ids
