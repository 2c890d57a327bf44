"""Input files of a prediction, and the names of their results."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from aicsd.errors import UserError
from aicsd.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image, is_video, list_images
from aicsd.prediction.settings import PredictConfig

ENDS = {
    "ids": ".png",
    "overlay": "_overlay.png",
    "color": "_color.png",
    "probabilities": "_probabilities.npy",
}
VIDEO_ENDS = {"ids": "", "overlay": "_overlay.mp4", "color": "_color.mp4"}
"""The ids of a video are a folder of PNGs, one a frame."""


class Input(NamedTuple):
    """One image or video."""

    path: Path
    name: Path
    """Name of its results below the output folder, without a suffix: ``park/007``."""

    @property
    def is_video(self) -> bool:
        return is_video(self.path)

    def results(self, out: Path, outputs: Sequence[str]) -> dict[str, Path]:
        """Output -> its file (the ids of a video: folder)."""
        ends = VIDEO_ENDS if self.is_video else ENDS
        stem = out / self.name
        return {output: stem.with_name(stem.name + ends[output]) for output in outputs}


def find_inputs(
    places: Sequence[str], recursive: bool = False, out: Path | None = None
) -> list[Input]:
    """Every image and video of ``places``, each once, in their order and sorted within one.

    Args:
        places: image or video files, folders of images, and patterns (``*``, ``?``, ``[ab]``,
            and ``**`` for folders of any depth) of image and video files.
        recursive: folders with all that are below them. Their results, and those of patterns, are
            kept apart by the same folders.
        out: folder of the results, which is not searched if it is below a place.

    Raises:
        UserError: a place that is not there, a folder without images, a pattern without matches.
    """
    found: dict[str, Input] = {}
    for place in places:
        results = out.resolve() if out is not None else None
        if results is not None and Path(place).resolve() not in results.parents:
            results = None
        for item in _at(place, recursive):
            if results not in item.path.resolve().parents:
                # not resolved: links to one file are several images
                found.setdefault(os.path.abspath(item.path), item)  # noqa: PTH100
    return list(found.values())


def _at(place: str, recursive: bool) -> Iterator[Input]:
    path = Path(place)
    if path.is_dir():
        inside = _images_below(path) if recursive else list_images(path)
        if not inside:
            hint = "; for those of its folders: --recursive" if _images_below(path) else ""
            raise UserError(f"no images in {path} (looked for {' '.join(IMAGE_SUFFIXES)}){hint}")
        yield from (Input(p, p.relative_to(path).with_suffix("")) for p in inside)
    elif path.is_file():
        yield Input(path, Path(path.stem))
    elif glob.has_magic(place):
        yield from _matches(place)
    else:
        raise UserError(f"no image or folder at {path}")


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path))


def _matches(pattern: str) -> Iterator[Input]:
    known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    paths = [Path(match) for match in _expand(pattern)]
    paths = [path for path in paths if path.suffix.lower() in known and path.is_file()]
    if not paths:
        raise UserError(f"no image or video matches {pattern}")
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    yield from (Input(path, path.relative_to(Path(*fixed)).with_suffix("")) for path in paths)


def _expand(pattern: str) -> list[str]:
    # pathlib takes no absolute patterns
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207


def plan_results(inputs: Sequence[Input], out: Path, config: PredictConfig) -> None:
    """Refuse what would mix results up, before anything is predicted.

    Raises:
        UserError: two inputs with one result, a result in the place of an input or in its folder,
            probabilities of a video, or frames that would be mixed with those of an earlier
            prediction.
    """
    originals = {item.path.resolve() for item in inputs}
    folders = {item.path.resolve().parent for item in inputs if not item.is_video}
    taken: dict[Path, Path] = {}
    for item in inputs:
        outputs = config.outputs_of(item.is_video)
        if item.is_video and "probabilities" in outputs:
            raise UserError(
                f"outputs: no probabilities of a video ({item.path}); they would fill the disk"
            )
        for output, result in item.results(out, outputs).items():
            other = taken.setdefault(result, item.path)
            if other is not item.path:
                raise UserError(
                    f"{other} and {item.path} would both have a result {result.relative_to(out)}; "
                    "predict them into different folders"
                )
            if result.resolve() in originals:
                raise UserError(f"{result} is an image; choose another folder for the results")
            if item.is_video and output == "ids" and result.exists():
                raise UserError(f"{result} exists; remove it, or choose another folder")
    for result in taken:
        if result.suffix in IMAGE_SUFFIXES and result.resolve().parent in folders:
            raise UserError(
                f"{result} would be among the images, and be used as one of them later; choose "
                "another folder for the results"
            )
