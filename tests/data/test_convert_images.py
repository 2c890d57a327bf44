"""Splits, names and orientation of converted images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_sources import (
    HEIGHT,
    WIDTH,
    box_points,
    coco_source,
    edit,
    files_below,
    left_out,
    photo,
    read_ids,
    save_ids,
    write_json,
)
from PIL import Image

from aicsd.data import open_dataset
from aicsd.data.convert import convert
from aicsd.data.convert.tree import split_of

# splits, names, copies


def test_a_split_by_seed_is_the_same_each_time_and_moves_little(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 20)

    def val_images(out: str, **options: Any) -> set[str]:
        convert(root, tmp_path / out, **options)
        folder = tmp_path / out / "images" / "val"
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    first = val_images("a", val=0.25)
    assert len(first) == 5
    assert val_images("b", val=0.25) == first
    assert files_below(tmp_path / "a") == files_below(tmp_path / "b")
    for name in files_below(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert val_images("c", val=0.25, seed=1) != first
    assert first < val_images("d", val=0.5)
    assert val_images("e", val=0) == set()
    assert len(val_images("f", val=0.001)) == 1
    photo(root / "images" / "99.jpg")

    def one_more(content: dict[str, Any]) -> None:
        content["images"].append({"id": 99, "file_name": "99.jpg"})
        content["annotations"].append({**content["annotations"][0], "image_id": 99})

    edit(root, one_more)
    assert len(val_images("g", val=0.25) ^ first) <= 1


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train", "train"),
        ("a/Valid/images", "val"),
        ("instances_val2017.json", "val"),
        ("x/training", "train"),
        ("test", "test"),
        ("unlabeled", "unlabelled"),
        ("images", None),
        ("latest/trainee", None),
        ("contest/interval", None),
        ("train/val", "val"),
    ],
)
def test_which_paths_name_a_split(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_images_of_one_name_keep_apart(tmp_path: Path) -> None:
    root = tmp_path / "s"
    contents = {}
    for number, name in enumerate(["a/1.jpg", "b/1.jpg", "b/1.png", "c/A.jpg", "d/a.jpg"]):
        contents[photo(root / name, (HEIGHT, WIDTH + number))] = number
        shapes = [{"label": "x", "points": box_points(number, 0, number + 1, 1)}]
        content = {"shapes": shapes, "imagePath": Path(name).name}
        write_json(root / f"{name}.json", content)
    result = convert(root, tmp_path / "o", val=0)
    assert result.written.images == {"train": 5}
    images = sorted((tmp_path / "o" / "images" / "train").iterdir())
    assert len({path.stem.lower() for path in images}) == 5
    for path in images:
        number = contents[path.read_bytes()]
        mask = read_ids(tmp_path / "o" / "masks" / "train" / f"{path.stem}.png")
        assert mask.shape == (HEIGHT, WIDTH + number)
        assert np.flatnonzero(mask[0]).tolist() == [number]


@pytest.mark.parametrize("name", [".hidden", "a\nb", "caf\udce9", "x" * 240, "~", "ü ß", "a:b|c"])
def test_names_that_no_disk_should_see(tmp_path: Path, name: str) -> None:
    root = coco_source(tmp_path / "s", 2)
    try:
        (root / "images" / "00.jpg").rename(root / "images" / f"{name}.jpg")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this disk does not take the name")
    edit(root, lambda c: c["images"][0].update(file_name=f"{name}.jpg"))
    result = convert(root, tmp_path / "o", val=0)
    (written,) = (p for p in (tmp_path / "o" / "images" / "train").iterdir() if p.stem != "01")
    assert written.stem.isprintable()
    assert not written.name.startswith(".")
    assert len(written.name.encode()) < 256
    assert len(open_dataset("folder", str(tmp_path / "o"), "train")) == 2
    result.text().encode("utf-8")


def test_a_suffix_that_lies_becomes_a_true_one(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 3)
    Image.open(root / "images" / "00.jpg").save(root / "images" / "x.png")
    content = (root / "images" / "x.png").read_bytes()
    (root / "images" / "00.jpg").write_bytes(content)
    Image.open(root / "images" / "x.png").save(root / "images" / "01.jpg", format="GIF")
    result = convert(root, tmp_path / "o", val=0)
    assert (tmp_path / "o" / "images" / "train" / "00.png").read_bytes() == content
    ((reason, where),) = left_out(result)
    assert reason == "an image that cannot be read"
    assert where.startswith(f"{root / 'images' / '01.jpg'} is not a readable image")


# images without annotation


def test_what_becomes_of_images_without_annotation(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 4)
    edit(root, lambda content: content["annotations"].pop(1))
    result = convert(root, tmp_path / "a", val=0)
    assert result.written.images == {"train": 3, "unlabelled": 1}
    assert "--empty" in result.text()
    result = convert(root, tmp_path / "b", val=0, empty="background")
    assert result.written.images == {"train": 4}
    assert (read_ids(tmp_path / "b" / "masks" / "train" / "01.png") == 0).all()
    result = convert(root, tmp_path / "c", val=0, empty="leave_out")
    assert result.written.images == {"train": 3}
    assert left_out(result) == [("no annotation", "images/01")]


# EXIF

TURNS = {  # (row, column) of the stored image -> of the one that is seen; H and W are the stored
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (c, h - 1 - r),
    7: lambda r, c, h, w: (w - 1 - c, h - 1 - r),
    8: lambda r, c, h, w: (w - 1 - c, r),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_and_its_mask_stay_together(tmp_path: Path, orientation: int) -> None:
    """Annotated as seen, or on the stored pixels: the declared size tells which."""
    root = coco_source(tmp_path / "s", 1)
    path = root / "images" / "00.jpg"
    spot = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    spot[3:11, 2:9] = 230  # where the object is, on the stored pixels
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(spot).save(path, exif=exif, quality=95)
    turned = orientation >= 5
    if turned:  # the declared size is that of the stored pixels: the annotation was drawn on them
        convert(root, tmp_path / "o", val=0)
        sample = open_dataset("folder", str(tmp_path / "o"), "train").read(0)
        assert np.array_equal(sample.mask == 1, sample.image[..., 0] > 125)
        shutil.rmtree(tmp_path / "o")
    points = [
        TURNS[orientation](y - 0.5, x - 0.5, HEIGHT, WIDTH) for x, y in box_points(2, 3, 9, 11)
    ]

    def as_seen(content: dict[str, Any]) -> None:
        size = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
        content["images"][0].update(height=size[0], width=size[1])
        content["annotations"][0]["segmentation"] = [[v + 0.5 for y, x in points for v in (x, y)]]

    edit(root, as_seen)
    result = convert(root, tmp_path / "o", val=0)
    sample = open_dataset("folder", str(tmp_path / "o"), "train").read(0)
    assert np.array_equal(sample.mask == 1, sample.image[..., 0] > 125)
    assert (tmp_path / "o" / "images" / "train" / "00.jpg").read_bytes() == path.read_bytes()
    undecided = orientation in (2, 3, 4)  # both sizes are equal, so the report says what was done
    assert any("EXIF" in reason for reason, _ in left_out(result, "note")) == undecided


def test_a_mask_file_of_the_stored_pixels_is_turned(tmp_path: Path) -> None:
    photo(tmp_path / "s" / "images" / "a.jpg", orientation=6)
    ids = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH))
    save_ids(tmp_path / "s" / "masks" / "a.png", ids)
    (tmp_path / "s" / "classes.txt").write_text("x\ny\n")
    result = convert(tmp_path / "s", tmp_path / "o")
    written = read_ids(tmp_path / "o" / "masks" / "train" / "a.png")
    for row in range(HEIGHT):
        for column in range(WIDTH):
            assert written[TURNS[6](row, column, HEIGHT, WIDTH)] == ids[row, column]
    assert "turned" in result.text()
