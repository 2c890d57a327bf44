"""Photos without masks, for distillation from a teacher alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from aicsd.data.classes_file import TEXT, find_classes, read_classes
from aicsd.data.entry import DatasetEntry
from aicsd.data.file_dataset import FileDataset, LayoutError, Pair
from aicsd.data.frames import photo_folder
from aicsd.data.protocol import Classes
from aicsd.data.wrappers import spread
from aicsd.images import IMAGE_SUFFIXES, is_image, is_video

HELD_OUT_SHARE = 10
"""One photo of that many is left out of training, to compare student and teacher on."""
MOST_HELD_OUT = 50


def find_photos(folder: Path) -> list[Path]:
    """Image files in a folder and the folders below it, sorted; hidden ones are left out.

    Raises:
        LayoutError: there is none.
    """
    files = sorted(_walk(folder))
    found = [path for path in files if is_image(path)]
    if not found:
        videos = [path for path in files if is_video(path)]
        cure = f"; for the frames of a video, give the file: {videos[0]}" if videos else ""
        raise LayoutError(f"no images in {folder} (looked for {' '.join(IMAGE_SUFFIXES)}){cure}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(".") and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def photo_dataset(
    folder: Path, classes: Classes, places: Iterable[int] | None = None
) -> FileDataset:
    """Photos of a folder as samples without labels, named by their paths in it.

    Args:
        folder: with photos, also in folders below it.
        classes: classes of the teacher.
        places: indices of the selected photos, in their order; None: all.

    Raises:
        LayoutError: there is no photo.
    """
    photos = find_photos(folder)
    short = [path.relative_to(folder).with_suffix("").as_posix() for path in photos]
    counts = Counter(short)
    names = [
        path.relative_to(folder).as_posix() if counts[name] > 1 else name
        for path, name in zip(photos, short, strict=True)
    ]
    taken = range(len(photos)) if places is None else list(places)
    pairs = [Pair(photos[place], None) for place in taken]
    return FileDataset(pairs, classes, names=[names[place] for place in taken])


def open_photos(root: Path, split: str, classes: str = TEXT) -> FileDataset:
    """Photos of a folder and the folders below it, none of which has labels.

    Args:
        root: the folder.
        split: ``val``: one photo of ten, spread evenly, at most 50; ``train``: the others;
            ``all``.
        classes: file with one class name a line, from ``root`` or absolute.

    Raises:
        UserError: another split, no photo, or no file of classes.
    """
    count = len(find_photos(root))
    if count < 2:
        raise LayoutError(f"{root} has one photo; training and comparing takes two")
    val = spread(min(MOST_HELD_OUT, max(1, count // HELD_OUT_SHARE)), count)
    places = {"all": list(range(count)), "val": val, "train": sorted({*range(count)} - {*val})}
    if split not in places:
        raise LayoutError(f"photos have no split {split!r}; allowed are {', '.join(places)}")
    return photo_dataset(root, read_classes(find_classes(root, classes)), places[split])


def _found(root: Path) -> bool:
    names_classes = (root / TEXT).is_file() and not (root / "images").is_dir()
    return names_classes and any(map(is_image, root.iterdir()))


PHOTOS = DatasetEntry(
    open=open_photos,
    found=_found,
    folder=photo_folder,
    layout=f"ROOT/**/*.jpg (or .png, …) without masks, or a video file ROOT, and ROOT/{TEXT} with "
    "one class name a line",
)
