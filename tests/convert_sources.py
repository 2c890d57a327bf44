"""Tiny sources for ``aicsd data convert``, and oracles of their masks in plain Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aicsd.data.convert import Conversion

HEIGHT, WIDTH = 24, 32
Points = Sequence[tuple[float, float]]


def photo(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), orientation: int = 1) -> bytes:
    """Write noise of ``size`` (rows, columns) as stored; returns the bytes of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, path.name)))
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, exif=exif)
    return path.read_bytes()


def save_ids(path: Path, ids: np.ndarray, palette: Iterable[int] | None = None) -> None:
    """A grey PNG of ids, or one with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    if palette is not None:
        image.putpalette(list(palette))
    image.save(path)


def save_colors(path: Path, ids: np.ndarray, colors: Mapping[int, Sequence[int]]) -> None:
    """A PNG in the colours of the ids, RGB or RGBA as the colours are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(next(iter(colors.values())))
    picture = np.zeros((*ids.shape, channels), np.uint8)
    for class_id, color in colors.items():
        picture[ids == class_id] = color
    Image.fromarray(picture).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def inside(points: Points, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """(H, W) bool: the centres of pixels inside an outline, by counting crossings to the left."""
    result = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y, odd = column + 0.5, row + 0.5, False
            for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
                if (y1 > y) != (y2 > y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) < x:
                    odd = not odd
            result[row, column] = odd
    return result


def near_edge(points: Points, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """(H, W) bool: pixels whose centre is less than 0.8 pixels from the outline."""
    result = np.zeros(size, bool)
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        for row in range(size[0]):
            for column in range(size[1]):
                x, y = column + 0.5, row + 0.5
                length = (x2 - x1) ** 2 + (y2 - y1) ** 2
                along = ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length if length else 0.0
                along = min(max(along, 0.0), 1.0)
                away = (x - x1 - along * (x2 - x1)) ** 2 + (y - y1 - along * (y2 - y1)) ** 2
                result[row, column] |= away < 0.64
    return result


def box_points(x1: float, y1: float, x2: float, y2: float) -> Points:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def flat(points: Points) -> list[float]:
    return [value for point in points for value in point]


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of (H, W) bool: column by column, the first of zeros."""
    counts, current = [0], 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if int(mask[row, column]) != current:
                counts.append(0)
                current = 1 - current
            counts[-1] += 1
    return counts


def packed(counts: Sequence[int]) -> str:
    """COCO's string of run lengths, written from its description."""
    text = ""
    for index, number in enumerate(counts):
        value = number - counts[index - 2] if index > 2 else number
        while True:
            bits = value & 0x1F
            value >>= 5
            last = value == (-1 if bits & 0x10 else 0)
            text += chr(48 + bits + (0 if last else 0x20))
            if last:
                break
    return text


def read_ids(path: Path) -> np.ndarray:
    """The ids of a written mask, which must be an 8-bit palette PNG."""
    with Image.open(path) as file:
        assert (file.format, file.mode) == ("PNG", "P")
        return np.asarray(file)


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def coco_source(root: Path, count: int = 4, **sizes: int) -> Path:
    """``count`` photos and one annotation file with a box of the class cup on each."""
    images, annotations = [], []
    for number in range(count):
        name = f"{number:02}.jpg"
        photo(root / "images" / name)
        size = {"height": HEIGHT, "width": WIDTH} | sizes
        images.append({"id": number, "file_name": name, **size})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "segmentation": [flat(box_points(2, 3, 9, 11))],
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cup"}],
    }
    write_json(root / "annotations.json", content)
    return root


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_out(result: Conversion, kind: str = "image") -> list[tuple[str, str]]:
    return [(r.reason, r.where) for r in result.written.remarks if r.kind == kind]
