"""A user's own data in other layouts, with masks of other values, and in colours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aicsd.data import SegDataset, open_dataset, open_images, survey
from aicsd.data.classes_file import read_color_table
from aicsd.data.file_dataset import FileDataset
from aicsd.errors import UserError

RNG = np.random.default_rng(0)
MASK = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
COLORS = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30]], np.uint8)
TABLE = "name,r,g,b\nground,0,0,0\ndisc,200,30,30\nbar,30,200,30\n"
RunCli = Callable[..., tuple[int, str, str]]


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, array: np.ndarray = MASK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("ground\ndisc\nbar\n")
    return tmp_path


def train(root: Path, **options: Any) -> SegDataset:
    return open_dataset("folder", str(root), "train", options)


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        train(root, **options).read(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# which files belong together


@pytest.mark.parametrize(
    ("images", "masks", "place_of_image", "place_of_mask"),
    [
        (None, "{stem}_mask.png", "images/train/a.jpg", "masks/train/a_mask.png"),
        (None, "{stem}_mask", "images/train/a.jpg", "masks/train/a_mask.tif"),
        (None, "annotations/{split}/{stem}.png", "images/train/a.jpg", "annotations/train/a.png"),
        ("{split}/img", "{split}/gt/{stem}", "train/img/a.png", "train/gt/a.bmp"),
        ("{split}", "{split}/{stem}_mask.png", "train/a.png", "train/a_mask.png"),
        ("{split}", "{split}/{stem}_mask", "train/a.jpg", "train/a_mask.png"),
        (None, "labels/{stem}/{split}.png", "images/train/a.jpg", "labels/a/train.png"),
        (None, "m [{stem}].png", "images/train/a.jpg", "masks/train/m [a].png"),
    ],
)
def test_places_and_names_of_masks(
    root: Path, images: str | None, masks: str, place_of_image: str, place_of_mask: str
) -> None:
    image(root / place_of_image)
    mask(root / place_of_mask)
    options = {"masks": masks} | ({"images": images} if images else {})
    data = train(root, **options)
    assert data.names == ["a"]
    assert np.array_equal(data.read(0).mask, MASK)
    assert open_images("folder", str(root), "train", options) == [root / place_of_image]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": "mask.png"}, "must contain {stem}"),
        ({"masks": "{name}.png"}, "{name} is unknown (allowed: split, stem)"),
        ({"images": "{stem}"}, "{stem} is unknown (allowed: split)"),
        ({"masks": 7}, "data.options.masks is 7; it must be a path"),
        ({"nested": "yes"}, "nested is 'yes'; it must be true or false"),
        ({"masks": "{stem}_gt.png"}, "a mask has the name a_gt.png"),
        ({"classes": "names.txt"}, "data.options.classes: no file"),
        ({"nearest": True}, "nearest needs mask_values, or masks in colours"),
    ],
)
def test_options_that_make_no_sense(root: Path, options: dict[str, Any], words: str) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png")
    assert words in refused(root, **options)


def test_two_files_of_one_name_are_refused(root: Path) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png")
    assert len(train(root)) == 1
    image(root / "images/train/a.jpg")
    message = refused(root)
    assert "images/train/a.jpg and" in message
    assert "have the same name, 'a'" in message
    (root / "images/train/a.jpg").unlink()
    mask(root / "masks/train/a.tif")
    message = refused(root)
    assert "has two masks" in message
    assert "a.png and" in message
    assert "layout of" not in message


def test_images_in_folders_below(root: Path) -> None:
    for name in ("day/a", "night/a", "night/late/b"):
        image(root / f"images/train/{name}.jpg")
        mask(root / f"masks/train/{name}.png")
    message = refused(root)
    assert "no images in" in message
    assert "3 are in folders below" in message
    assert "data.options nested: true takes them" in message
    assert train(root, nested=True).names == ["day/a", "night/a", "night/late/b"]
    image(root / "images/train/c.jpg")
    mask(root / "masks/train/c.png")
    data = train(root)
    assert data.names == ["c"]
    assert isinstance(data, FileDataset)
    (note,) = [note for note in data.notes if "folders" in note]
    assert "left out" in note
    assert "nested: true" in note
    whole = train(root, nested=True)
    assert len(whole) == 4
    assert isinstance(whole, FileDataset)
    assert whole.notes == []
    (root / "masks/train/night/late/b.png").unlink()
    assert "no mask for" in refused(root, nested=True)


def test_templates_of_nested_folders(root: Path) -> None:
    image(root / "images/train/day/a.jpg")
    mask(root / "masks/train/day/m_a.png")
    assert train(root, nested=True, masks="m_{stem}.png").names == ["day/a"]


def test_links_are_followed_once(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("store")
    image(elsewhere / "x/a.png")
    mask(elsewhere / "y/a.png")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    (root / "images/train").symlink_to(elsewhere / "x")
    (root / "masks/train").symlink_to(elsewhere / "y")
    (elsewhere / "x/loop").symlink_to(elsewhere / "x")
    for options in ({}, {"nested": True}):
        data = train(root, **options)
        assert data.names == ["a"]
        assert np.array_equal(data.read(0).mask, MASK)


def test_masks_without_an_image_are_told(root: Path) -> None:
    image(root / "images/train/a.png")
    for name in ("a", "b", "c"):
        mask(root / f"masks/train/{name}.png")
    mask(root / "masks/train/._a.png")
    found = survey("folder", str(root), "train")
    assert found.images == 1
    assert any("2 masks have no image and are left out, such as" in note for note in found.notes)


def test_names_that_are_no_utf8_can_be_printed_and_saved(root: Path) -> None:
    name = os.fsdecode(b"stra\xdfe")
    image(root / f"images/train/{name}.png")
    mask(root / f"masks/train/{name}.png")
    data = train(root)
    assert data.names == ["stra\\xdfe"]
    data.names[0].encode()
    assert np.array_equal(data.read(0).mask, MASK)


# what masks hold


BINARY = np.where(MASK > 0, 255, 0).astype(np.uint8)


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


KINDS = {".png": ("RGB", "RGBA", "P"), ".bmp": ("RGB", "P"), ".tif": ("RGB", "RGBA", "P"),
         ".webp": ("RGB", "RGBA")}  # fmt: skip


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


# through the command line


def test_options_reach_a_training(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    from tiny_runs import FIT_FLAGS, model_flags

    for split, count in (("train", 4), ("val", 1)):
        for number in range(count):
            image(root / f"{split}/{number}.png", number)
            mask(root / f"{split}/{number}_gt.png", BINARY)
    shutil.copy(root / "classes.txt", root / "names.txt")
    (root / "names.txt").write_text("ground\nobject\n")
    options = (
        "{images: '{split}', masks: '{split}/{stem}_gt.png', classes: names.txt, "
        "mask_values: {0: ground, 255: object}}"
    )
    code, output, error = run_cli(
        "train", "--data.root", root, "--data.options", options, "--data.batch_size", 2,
        "--epochs", 1, *FIT_FLAGS, *model_flags("model"), "--run", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, error
    code, output, error = run_cli("data", "check", "--data.root", root, "--data.options", options)
    assert code == 0, error
    assert "object" in output


@pytest.mark.skipif(
    not Path("../shared/data/labelmefacade").is_dir(),
    reason="LabelMeFacade is not beside the project",
)
def test_facades_are_read_in_place(tmp_path: Path) -> None:
    table = tmp_path / "facade.csv"
    table.write_text(
        "ignored,0,0,0\nbuilding,128,0,0\ncar,128,0,128\ndoor,128,128,0\npavement,128,128,128\n"
        "road,128,64,0\nsky,0,128,128\nvegetation,0,128,0\nwindow,0,0,128\n"
    )
    options = {"classes": str(table), "masks": "masks_rgb/{split}/{stem}.png"}
    data = open_dataset("auto", "../shared/data/labelmefacade", "val", options)
    assert len(data) == 145
    found = np.zeros(256, np.int64)
    for index in range(0, 145, 29):
        found += np.bincount(data.read(index).mask.ravel(), minlength=256)
    assert (found[:8] > 0).sum() >= 6
    assert 0 < found[255] < found.sum() / 5
