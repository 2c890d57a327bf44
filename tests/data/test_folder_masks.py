"""Masks of a user's own data with other values than the ids, and in colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_files import BINARY, COLORS, MASK, TABLE, image, mask, refused, train, write_names
from PIL import Image

from aicsd.data.classes_file import read_color_table
from aicsd.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_names(tmp_path)


@pytest.mark.parametrize(
    ("stored", "values", "expected"),
    [
        (BINARY, {0: "ground", 255: "disc"}, np.minimum(MASK, 1)),
        (BINARY, {"0": 0, "255": 1}, np.minimum(MASK, 1)),
        (BINARY, {0: "ignored", 255: "bar"}, np.where(MASK > 0, 2, 255)),
        (BINARY, {0: "ground"}, np.where(MASK > 0, 255, 0)),
        (MASK + 1, {1: "ground", 2: "disc", 3: "bar"}, MASK),
        (MASK * 100, {0: "ground", "other": "ignored"}, np.where(MASK > 0, 255, 0)),
        (MASK.astype(np.uint16) * 1000, {0: "ground", 1000: "disc", 2000: "bar"}, MASK),
        (MASK.astype(np.int32) - 1, {-1: "ground", 0: "disc", 1: "bar"}, MASK),
        (MASK.astype(np.int32) - 1, {0: "disc", "other": 255}, np.where(MASK == 1, 1, 255)),
    ],
)
def test_values_stand_for_classes(
    root: Path, stored: np.ndarray, values: dict[Any, Any], expected: np.ndarray
) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.tif", stored)
    found = train(root, mask_values=values).read(0).mask
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({0: "groun"}, "no class 'groun'; did you mean 'ground'"),
        ({0: 3}, "no class 3"),
        ({0: True}, "no class True"),
        ({"x": "ground"}, "'x' must be a whole number or other"),
        ({}, "must be a mapping"),
        ([1], "must be a mapping"),
        ({"other": "ground"}, "lists no value"),
        ({0: "ground", 1: "disc"}, "no class for the value 2; data.options mask_values lists 0, 1"),
    ],
)
def test_maps_that_make_no_sense(root: Path, values: Any, words: str) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png")
    assert words in refused(root, mask_values=values)


def test_a_value_without_class_offers_the_map(root: Path) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png", MASK + 1)
    message = refused(root)
    assert "class id 3 is out of range" in message
    assert "data.options mask_values" in message


def test_jpeg_masks_need_the_nearest_value(root: Path) -> None:
    blocks = np.kron(np.array([[0, 255, 0], [255, 0, 255]], np.uint8), np.ones((13, 11), np.uint8))
    path = root / "masks/train/a.jpg"
    image(root / "images/train/a.png").write_bytes(b"")
    Image.fromarray(np.zeros((*blocks.shape, 3), np.uint8)).save(root / "images/train/a.png")
    mask(path, blocks)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    values = {0: "ground", 255: "disc"}
    for options in ({}, {"mask_values": values}):
        assert "is a JPEG" in refused(root, **options)
    found = train(root, mask_values=values, nearest=True).read(0).mask
    assert np.array_equal(found, blocks // 255)


def test_a_nearest_value_leaves_none_for_other(root: Path) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png")
    values = {0: "ground", 255: "disc", "other": "ignored"}
    assert "leaves none for other" in refused(root, mask_values=values, nearest=True)


def test_nearest_value() -> None:
    from aicsd.data.masks import IdMasks

    levels = np.arange(256, dtype=np.uint8)[None]
    read = IdMasks(3, {0: 0, 100: 1, 200: 2}, nearest=True, read=lambda path, lossy: levels)
    expected = [min((0, 100, 200), key=lambda value: abs(value - level)) // 100
                for level in range(256)]  # fmt: skip
    found = read(Path("x"))[0].tolist()
    ties = {50, 150}
    assert [f for i, f in enumerate(found) if i not in ties] == [
        e for i, e in enumerate(expected) if i not in ties
    ]


# colours


@pytest.fixture
def colored(tmp_path: Path) -> Path:
    (tmp_path / "classes.csv").write_text(TABLE)
    image(tmp_path / "images/train/a.png")
    return tmp_path


KINDS = {
    ".png": ("RGB", "RGBA", "P"),
    ".bmp": ("RGB", "P"),
    ".tif": ("RGB", "RGBA", "P"),
    ".webp": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(s, mode) for s in KINDS for mode in KINDS[s]])
def test_masks_in_colours(colored: Path, mode: str, suffix: str) -> None:
    path = colored / f"masks/train/a{suffix}"
    path.parent.mkdir(parents=True)
    picture = Image.fromarray(COLORS[MASK])
    picture = picture.quantize(3) if mode == "P" else picture.convert(mode)
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    picture.save(path, **options)
    data = train(colored)
    assert data.classes.names == ("ground", "disc", "bar")
    assert data.classes.palette == tuple(map(tuple, COLORS.tolist()))
    assert np.array_equal(data.read(0).mask, MASK)


def test_black_and_white_masks_are_colours_too(colored: Path) -> None:
    (colored / "classes.csv").write_text("ground,0,0,0\nobject,255,255,255\n")
    mask(colored / "masks/train/a.png", BINARY)
    assert np.array_equal(train(colored).read(0).mask, BINARY // 255)


def test_a_colour_without_class_is_named(colored: Path) -> None:
    colors = COLORS[MASK]
    colors[0, 0] = (1, 2, 3)
    path = mask(colored / "masks/train/a.png", colors)
    message = refused(colored)
    assert f"{path}: no class for the colour 1,2,3 (1 pixels)" in message
    assert "classes.csv lists the colours, and a line ignored,r,g,b leaves one out" in message
    (colored / "classes.csv").write_text(TABLE + "ignored,1,2,3\n")
    found = train(colored).read(0).mask
    assert found[0, 0] == 255
    assert np.array_equal(found.ravel()[1:], MASK.ravel()[1:])


def test_jpeg_masks_need_the_nearest_colour(colored: Path) -> None:
    blocks = np.kron(np.array([[0, 1, 2], [2, 0, 1]], np.uint8), np.ones((13, 11), np.uint8))
    Image.fromarray(np.zeros((*blocks.shape, 3), np.uint8)).save(colored / "images/train/a.png")
    path = mask(colored / "masks/train/a.png", COLORS[blocks])
    Image.open(path).save(path.with_suffix(".jpg"), quality=90, subsampling=0)
    path.unlink()
    assert "is a JPEG" in refused(colored)
    assert np.array_equal(train(colored, nearest=True).read(0).mask, blocks)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names 0 classes"),
        ("ignored,0,0,0\n", "names 0 classes"),
        ("a,0,0\n", "line 1: 'a,0,0' must be name,r,g,b"),
        ("a,0,0,256\n", "must be name,r,g,b with 0 to 255"),
        ("a,0,0,-1\n", "must be name,r,g,b"),
        (",0,0,1\n", "must be name,r,g,b"),
        ("a,0,0,1\nname,r,g,b\n", "line 2"),
        ("a,0,0,1\nb,0,0,1\n", "line 2: the colour 0,0,1 appears twice"),
        ("".join(f"c{i},{i % 256},{i // 256},0\n" for i in range(256)), "names 256 classes"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_color_table(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_class_may_have_several_colours(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text('\ufeff"traffic light", 1, 2, 3\r\n\r\nroad,0,0,0\ntraffic light,4,5,6\n')
    classes, colors = read_color_table(path)
    assert classes.names == ("traffic light", "road")
    assert classes.palette == ((1, 2, 3), (0, 0, 0))
    assert colors == {(1, 2, 3): 0, (0, 0, 0): 1, (4, 5, 6): 0}


def test_one_file_names_the_classes(colored: Path) -> None:
    mask(colored / "masks/train/a.png", COLORS[MASK])
    assert "already defines the values of masks" in refused(colored, mask_values={0: "ground"})
    (colored / "classes.txt").write_text("ground\ndisc\nbar\n")
    assert "has both classes.txt" in refused(colored)
    assert train(colored, classes="classes.csv").classes.names == ("ground", "disc", "bar")
