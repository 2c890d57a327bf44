"""A user's own data: what is read, and one line that names the file for all that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASS_NAMES, one_line, write_folder
from PIL import Image

from aicsd.data import check_dataset, open_dataset, survey
from aicsd.data.classes_file import distinct_color, read_classes
from aicsd.data.file_dataset import FileDataset

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
MASK = np.random.default_rng(1).integers(0, 3, (24, 32), dtype=np.uint8)


def tree(root: Path, count: int = 1, classes: str = "a\nb\nc\n") -> Path:
    for part in ("images", "masks"):
        (root / part / "val").mkdir(parents=True)
    (root / "classes.txt").write_text(classes)
    for number in range(count):
        Image.fromarray(IMAGE).save(image_file(root, number))
        Image.fromarray(MASK).save(mask_file(root, number))
    return root


def image_file(root: Path, number: int = 0) -> Path:
    return root / "images" / "val" / f"{number}.png"


def mask_file(root: Path, number: int = 0) -> Path:
    return root / "masks" / "val" / f"{number}.png"


def open_val(root: Path) -> FileDataset:
    dataset = open_dataset("folder", str(root), "val")
    assert isinstance(dataset, FileDataset)
    return dataset


def test_reads_what_was_written(tiny_folder: Path) -> None:
    train = open_dataset("folder", str(tiny_folder), "train")
    val = open_dataset("folder", str(tiny_folder), "val")
    assert (len(train), len(val)) == (8, 4)
    assert train.classes.names == CLASS_NAMES
    assert val.names == ["000", "001", "002", "003"]
    for index in range(4):
        image, mask, _ = val.read(index)
        folder = tiny_folder / "images" / "val"
        assert np.array_equal(image, np.asarray(Image.open(folder / f"00{index}.png")))
        stored = Image.open(tiny_folder / "masks" / "val" / f"00{index}.png")
        assert np.array_equal(mask, np.asarray(stored))
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1, 2, 255}
    assert list(check_dataset(train)) == list(check_dataset(train, decode_images=True)) == []


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".webp", ".jpg", ".jpeg"])
def test_image_formats(tmp_path: Path, suffix: str) -> None:
    root = tree(tmp_path / "d")
    image_file(root).unlink()
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(IMAGE).save(image_file(root).with_suffix(suffix), **options)
    image = open_val(root).read(0).image
    difference = np.abs(image.astype(int) - IMAGE).mean()
    assert difference == 0 or (suffix in (".jpg", ".jpeg") and difference < 60)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    root = tree(tmp_path / "d")
    picture = Image.fromarray(IMAGE).quantize(16) if mode == "P" else Image.fromarray(IMAGE)
    picture = picture.convert(mode)
    picture.save(image_file(root))
    image = open_val(root).read(0).image
    assert image.shape == (24, 32, 3)
    assert np.array_equal(image, np.asarray(picture.convert("RGB")))


def test_samples_are_sorted_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", count=3)
    for name in ("9", "10"):
        Image.fromarray(IMAGE).save(root / "images" / "val" / f"{name}.png")
        Image.fromarray(MASK).save(root / "masks" / "val" / f"{name}.png")
    (root / "images" / "val" / "notes.txt").write_text("x")
    Image.fromarray(MASK).save(root / "masks" / "val" / "spare.png")
    assert open_val(root).names == ["0", "1", "10", "2", "9"]


def test_palette_masks_hold_their_ids(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    picture = Image.fromarray(MASK)
    picture.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200] + [7] * 759)
    assert picture.mode == "P"
    picture.save(mask_file(root))
    assert np.array_equal(open_val(root).read(0).mask, MASK)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_their_ids(tmp_path: Path, bits: int) -> None:
    root = tree(tmp_path / "d")
    picture = Image.fromarray((MASK > 0).astype(np.uint8))
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(mask_file(root), bits=bits)
    assert np.array_equal(open_val(root).read(0).mask, MASK > 0)
    Image.fromarray(MASK > 0).save(mask_file(root))
    assert np.array_equal(open_val(root).read(0).mask, MASK > 0)


def test_16_bit_masks_of_small_ids_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    Image.fromarray(MASK.astype(np.uint16)).save(mask_file(root))
    mask = open_val(root).read(0).mask
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, MASK)


@pytest.mark.parametrize("value", [3, 7, 254])
def test_an_id_without_class_is_refused(tmp_path: Path, value: int) -> None:
    root = tree(tmp_path / "d")
    mask = MASK.copy()
    mask[5, 6] = value
    Image.fromarray(mask).save(mask_file(root))
    message = one_line(lambda: open_val(root).read(0))
    assert f"{mask_file(root)}: class id {value} is out of range" in message
    assert "0 to 2" in message


def test_255_is_ignored_not_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    Image.fromarray(np.full_like(MASK, 255)).save(mask_file(root))
    assert (open_val(root).read(0).mask == 255).all()


@pytest.mark.parametrize("value", [256, 259, 65535])
def test_an_id_beyond_8_bits_is_refused_not_wrapped(tmp_path: Path, value: int) -> None:
    root = tree(tmp_path / "d")
    mask = MASK.astype(np.uint16)
    mask[0, 0] = value
    Image.fromarray(mask).save(mask_file(root))
    assert f"class id {value} is out of range" in one_line(lambda: open_val(root).read(0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_a_mask_of_colours_is_refused(tmp_path: Path, mode: str) -> None:
    root = tree(tmp_path / "d")
    mask_file(root).unlink()
    path = mask_file(root).with_suffix(".tif")
    Image.fromarray(MASK).convert(mode).save(path)
    message = one_line(lambda: open_val(root).read(0))
    assert f"{path} is a {mode} image" in message
    assert "one channel" in message


def test_sizes_that_differ_are_named_as_width_by_height(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    Image.fromarray(MASK[:20, :30]).save(mask_file(root))
    for call in (lambda: open_val(root).read(0), lambda: open_val(root).check_pair(0)):
        message = one_line(call)
        assert f"{image_file(root)} is 32x24" in message
        assert f"{mask_file(root)} is 30x20" in message


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_turned_photo_has_the_size_at_which_it_is_seen(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    root = tree(tmp_path / "d")
    image_file(root).unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGE).save(image_file(root).with_suffix(suffix), exif=exif)
    mask = MASK if orientation < 5 else MASK.T
    Image.fromarray(np.ascontiguousarray(mask)).save(mask_file(root))
    image, read, _ = open_val(root).read(0)
    assert image.shape[:2] == read.shape == mask.shape
    assert list(check_dataset(open_val(root))) == []
    # its mask may have been drawn on the stored pixels, though the sizes agree
    notes = [note for note in survey("folder", str(root), "val").notes if "EXIF" in note]
    assert len(notes) == (orientation > 1)
    Image.fromarray(np.ascontiguousarray(mask.T)).save(mask_file(root))
    (problem,) = check_dataset(open_val(root))
    assert ("EXIF turns the image" in problem) == (orientation >= 5)
    Image.fromarray(MASK).save(mask_file(root), exif=exif)
    found = survey("folder", str(root), "val")
    assert not [note for note in (*found.notes, *found.problems) if "EXIF" in note]


@pytest.mark.parametrize("content", ["empty", "half", "text"])
@pytest.mark.parametrize("which", [image_file, mask_file])
def test_a_broken_file_is_named(
    tmp_path: Path, which: Callable[[Path], Path], content: str
) -> None:
    root = tree(tmp_path / "d")
    path = which(root)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[: len(data) // 3], "text": b"words"}[content])
    message = one_line(lambda: open_val(root).read(0))
    assert f"{path} is not a readable image" in message
    (problem,) = check_dataset(open_val(root), decode_images=True)
    assert str(path) in problem


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_refused_not_filled_up(tmp_path: Path, suffix: str) -> None:
    root = tree(tmp_path / "d")
    image_file(root).unlink()
    path = image_file(root).with_suffix(suffix)
    Image.fromarray(IMAGE).save(path)
    path.write_bytes(path.read_bytes()[:-120])
    assert str(path) in one_line(lambda: open_val(root).read(0))


@pytest.mark.parametrize("which", [image_file, mask_file])
def test_a_file_that_vanished_is_named(tmp_path: Path, which: Callable[[Path], Path]) -> None:
    root = tree(tmp_path / "d")
    dataset = open_val(root)
    which(root).unlink()
    assert str(which(root)) in one_line(lambda: dataset.read(0))
    assert str(which(root)) in one_line(lambda: dataset.check_pair(0))


def test_check_lists_every_bad_file_and_only_these(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", count=6)
    wrong_id = MASK.copy()
    wrong_id[0, 0] = 9
    Image.fromarray(wrong_id).save(mask_file(root, 1))
    Image.fromarray(MASK[:10]).save(mask_file(root, 3))
    mask_file(root, 4).write_bytes(b"")
    found = list(check_dataset(open_val(root)))
    assert len(found) == 3
    for line, number in zip(found, (1, 3, 4), strict=True):
        assert str(mask_file(root, number)) in line
        assert "\n" not in line
    image_file(root, 5).write_bytes(image_file(root, 5).read_bytes()[:-200])
    assert list(check_dataset(open_val(root))) == found
    decoded = list(check_dataset(open_val(root), decode_images=True))
    assert decoded[:3] == found
    assert len(decoded) == 4
    assert str(image_file(root, 5)) in decoded[3]


def test_missing_masks_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", count=4)
    mask_file(root, 1).unlink()
    message = one_line(lambda: open_val(root))
    assert f"no mask for {image_file(root, 1)} in" in message
    mask_file(root, 2).unlink()
    mask_file(root, 3).unlink()
    assert f"no mask for {image_file(root, 1)} and 2 more" in one_line(lambda: open_val(root))


@pytest.mark.parametrize("folder", ["images/val", "masks/val", "images", "masks"])
def test_a_missing_folder_is_named_with_the_layout(tmp_path: Path, folder: str) -> None:
    root = write_folder(tmp_path / "d", {"val": 1})
    (root / folder).rename(root / "elsewhere")
    message = one_line(lambda: open_val(root))
    assert f"no folder {root / folder}" in message
    assert "classes.txt" in message


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    message = one_line(lambda: open_dataset("folder", str(root), "test"))
    assert f"no folder {root / 'images' / 'test'}" in message


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", count=0)
    message = one_line(lambda: open_val(root))
    assert f"no images in {root / 'images' / 'val'}" in message
    assert ".png" in message


def test_a_missing_classes_file_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (root / "classes.txt").unlink()
    message = one_line(lambda: open_val(root))
    assert f"no {root / 'classes.txt'}" in message
    assert "one class name a line" in message


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    message = one_line(lambda: open_dataset("folder", str(tmp_path / "nowhere"), "val"))
    assert f"no folder {tmp_path / 'nowhere'}" in message
    assert "needs data.root" in one_line(lambda: open_dataset("folder", None, "val"))


def test_unknown_names_and_options_are_refused(tmp_path: Path) -> None:
    root = str(tree(tmp_path / "d"))
    message = one_line(lambda: open_dataset("foldr", root, "val"))
    assert "'foldr'" in message
    assert "did you mean 'folder'" in message
    assert "'size'" in one_line(lambda: open_dataset("folder", root, "val", {"size": 3}))


def test_classes_with_spaces_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("road 128 64 128\n\n  traffic light  \nlane 2\nsky 0 0 300\r\n7 1 2 3\n")
    classes = read_classes(path)
    assert classes.names == ("road", "traffic light", "lane 2", "sky 0 0 300", "7")
    assert classes.palette[0] == (128, 64, 128)
    assert classes.palette[4] == (1, 2, 3)
    assert classes.palette[1:4] == tuple(distinct_color(number) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names 0 classes"),
        (b"\n \n", "names 0 classes"),
        (b"a\nb\na\n", "'a' more than once"),
        ("\n".join(f"c{i}" for i in range(256)).encode(), "names 256 classes"),
        (b"caf\xe9\n", "classes.txt"),
    ],
)
def test_wrong_classes_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    message = one_line(lambda: read_classes(tmp_path / "classes.txt"))
    assert words in message
    assert "classes.txt" in message


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfroad\nsky\n")
    assert read_classes(tmp_path / "classes.txt").names == ("road", "sky")


def test_generated_colours_differ() -> None:
    colors = [distinct_color(number) for number in range(60)]
    assert len(set(colors)) == 60
    for a, b in itertools.pairwise(colors):
        assert np.abs(np.subtract(a, b)).max() > 60
    assert all(0 <= value <= 255 for color in colors for value in color)


def test_checking_data_without_files_finds_nothing() -> None:
    pytest.importorskip("sklearn")
    digits = open_dataset("digits", None, "val", {"scenes": 2, "size": 32})
    assert not isinstance(digits, FileDataset)
    assert list(check_dataset(digits)) == []
