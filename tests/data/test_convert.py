"""What every conversion promises: recognition, splits, names, bounds, one line, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import TINY_MODEL
from convert_sources import (
    HEIGHT,
    WIDTH,
    box_points,
    files_below,
    flat,
    inside,
    photo,
    read_ids,
    save_ids,
    write_json,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aicsd.data import open_dataset
from aicsd.data.convert import FORMATS, Conversion, convert
from aicsd.data.convert.colors import parse_table
from aicsd.data.convert.tree import Tree, split_of
from aicsd.errors import UserError

RunCli = Callable[..., tuple[int, str, str]]
LABELMEFACADE = Path(__file__).parents[3] / "shared" / "data" / "labelmefacade"


def coco_source(root: Path, count: int = 4, **sizes: int) -> Path:
    """``count`` photos and one annotation file with a box of the class cup on each."""
    images, annotations = [], []
    for number in range(count):
        name = f"{number:02}.jpg"
        photo(root / "images" / name)
        size = {"height": HEIGHT, "width": WIDTH} | sizes
        images.append({"id": number, "file_name": name, **size})
        annotations.append({"id": number, "image_id": number, "category_id": 1,
                            "segmentation": [flat(box_points(2, 3, 9, 11))]})  # fmt: skip
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": 1, "name": "cup"}]}  # fmt: skip
    write_json(root / "annotations.json", content)
    return root


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_out(result: Conversion, kind: str = "image") -> list[tuple[str, str]]:
    return [(r.reason, r.where) for r in result.written.remarks if r.kind == kind]


# recognition


def test_the_help_and_the_page_name_every_format(run_cli: RunCli) -> None:
    code, output, _ = run_cli("data", "convert", "--help")
    assert code == 0
    page = (Path(__file__).parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")
    words = output.replace(",", " ").replace(";", " ").split()
    for known in FORMATS:
        assert known.name in words
        assert f"| `{known.name}` |" in page


def test_nothing_known_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.json").write_text("{}")
    message = one_line(lambda: convert(tmp_path / "s", tmp_path / "o"))
    for known in FORMATS:
        assert f"{known.name} ({known.files})" in message
    assert not (tmp_path / "o").exists()


def test_two_formats_are_asked_about(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s")
    (root / "data.yaml").write_text("train: images\nnames: [a]\n")
    message = one_line(lambda: convert(root, tmp_path / "o"))
    assert "coco (" in message
    assert "yolo (" in message
    assert "voc (" not in message
    assert "--format NAME" in message
    assert convert(root, tmp_path / "o", format="coco").format == "coco"


def test_wrong_words(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s")
    table = tmp_path / "t.csv"
    table.write_text("a\n")
    out = tmp_path / "o"
    for call, words in (
        (lambda: convert(root, out, format="coc"), ["'coc'", "did you mean 'coco'"]),
        (lambda: convert(root, out, val=1.0), ["val is 1.0"]),
        (lambda: convert(root, out, val=-0.1), ["val is -0.1"]),
        (lambda: convert(root, root / "o"), ["lies in the source"]),
        (lambda: convert(root, root), ["is there already"]),
        (lambda: convert(tmp_path / "no", out), ["no folder"]),
        (lambda: convert(table, out), ["no folder", "unpack it"]),
        (lambda: convert(root, out, classes=table), ["coco names its classes itself"]),
        (lambda: convert(root, out, empty="background", background=False), ["empty background"]),
        (lambda: convert(root, out, format="yolo"), ["data.yaml"]),
        (lambda: convert(root, out, format="voc"), ["SegmentationClass"]),
        (lambda: convert(root, out, format="cvat"), ["labelmap.txt"]),
        (lambda: convert(root, out, format="ade20k"), ["objectInfo150.txt"]),
        (lambda: convert(root, out, format="roboflow"), ["_classes.csv"]),
        (lambda: convert(root, out, format="coco-panoptic"), ["segments_info"]),
        (lambda: convert(root, out, format="huggingface"), ["parquet"]),
        (lambda: convert(root, out, format="masks"), ["classes"]),
        (lambda: convert(root, out, format="labelme"), ["can be used", "no annotation"]),
    ):
        message = one_line(call)
        for word in words:
            assert word in message
        assert not out.exists()


@pytest.mark.parametrize("name", [known.name for known in FORMATS])
@pytest.mark.parametrize("content", ["empty", "words"])
def test_a_source_without_anything_of_a_format_is_one_line(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "s").mkdir()
    if content == "words":
        for file in ("a.json", "data.yaml", "a.parquet", "classes.csv", "labelmap.txt", "a.png"):
            (tmp_path / "s" / file).write_text("words \x00 [")
    one_line(lambda: convert(tmp_path / "s", tmp_path / "o", format=name))
    assert names_in(tmp_path) == ["s"]


@pytest.mark.parametrize(("package", "name"), [("pycocotools", "coco"), ("pyarrow", "huggingface")])
def test_a_missing_library_is_one_line(
    tmp_path: Path, package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = one_line(lambda: convert(coco_source(tmp_path / "s"), tmp_path / "o", format=name))
    assert f"{name} needs {package}: pip install 'aicsd[convert]'" in message


# splits, names, copies


def test_a_split_by_seed_is_the_same_each_time_and_moves_little(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 20)

    def val_images(out: str, **options: object) -> set[str]:
        convert(root, tmp_path / out, **options)  # type: ignore[arg-type]
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
    [("train", "train"), ("a/Valid/images", "val"), ("instances_val2017.json", "val"),
     ("x/training", "train"), ("test", "test"), ("unlabeled", "unlabelled"), ("images", None),
     ("latest/trainee", None), ("contest/interval", None), ("train/val", "val")],
)  # fmt: skip
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
    1: lambda r, c, h, w: (r, c), 2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c), 4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r), 6: lambda r, c, h, w: (c, h - 1 - r),
    7: lambda r, c, h, w: (w - 1 - c, h - 1 - r), 8: lambda r, c, h, w: (w - 1 - c, r),
}  # fmt: skip


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


# hostile sources


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "/etc/passwd", "images/../../secret.jpg", "..\\secret.jpg", "link.jpg",
     "folder/secret.jpg", "C:/secret.jpg", "\x00", "x" * 5000, "ring.jpg", "fifo.jpg", "images"],
)  # fmt: skip
def test_no_path_leads_outside(tmp_path: Path, name: str) -> None:
    secret = photo(tmp_path / "secret.jpg")
    root = coco_source(tmp_path / "s", 2)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "ring.jpg").symlink_to("ring.jpg")
    os.mkfifo(root / "fifo.jpg")
    edit(root, lambda content: content["images"][0].update(file_name=name))
    result = convert(root, tmp_path / "o", val=0)
    assert result.written.images == {"train": 1}
    ((reason, _),) = left_out(result)
    assert reason in ("its path leads out of the source", "no such file")
    (line,) = (line for line in result.text().splitlines() if f"1: {reason} (" in line)
    assert line.isprintable()
    for path in (tmp_path / "o").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.read_bytes() != secret
    links = {where for reason, where in left_out(result, "file")}
    assert links == {"link.jpg", "folder/", "ring.jpg"}


def test_pipes_are_not_waited_for_and_names_break_no_line(tmp_path: Path) -> None:
    root = tmp_path / "s"
    shapes = [{"label": "x", "points": box_points(1, 1, 5, 5)}]
    photo(root / "a.jpg")
    write_json(root / "a.json", {"shapes": shapes, "imagePath": "a.jpg"})
    os.mkfifo(root / "b.jpg")
    os.mkfifo(root / "c.json")
    assert convert(root, tmp_path / "o").written.images == {"train": 1}
    for name in ("a\nb.yaml", "c.yaml"):
        (root / name).write_text("train: .\nnames: [x]\n")
    assert "a?b.yaml" in one_line(lambda: convert(root, tmp_path / "p", format="yolo"))


def test_a_link_inside_the_source_is_a_file_as_any(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 1)
    (root / "images" / "00.jpg").rename(root / "real.jpg")
    (root / "images" / "00.jpg").symlink_to("../real.jpg")
    convert(root, tmp_path / "o")
    written = tmp_path / "o" / "images" / "train" / "00.jpg"
    assert not written.is_symlink()
    assert written.read_bytes() == (root / "real.jpg").read_bytes()


def test_images_of_absurd_size_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = coco_source(tmp_path / "s", 2)
    header = bytearray((root / "images" / "00.jpg").read_bytes())
    place = header.index(b"\xff\xc0")
    header[place + 5 : place + 9] = b"\xff\xf0\xff\xf0"
    (root / "images" / "00.jpg").write_bytes(bytes(header))
    edit(root, lambda c: c["images"][0].update(width=65520, height=65520))
    decoded: list[np.ndarray] = []
    real = cv2.imdecode

    def spy(data: np.ndarray, how: int) -> np.ndarray | None:
        decoded.append(data)
        return real(data, how)

    monkeypatch.setattr(cv2, "imdecode", spy)
    result = convert(root, tmp_path / "o")
    assert len(decoded) == 1
    ((_, where),) = left_out(result)
    assert "00.jpg has 65520x65520 pixels" in where


def test_an_absurd_declared_size_allocates_nothing(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 2)
    edit(root, lambda c: c["images"][0].update(width=10**9, height=10**9))
    result = convert(root, tmp_path / "o")
    assert [reason for reason, _ in left_out(result)] == ["its annotation is of another size"]


def test_an_outline_of_absurd_length_is_left_out(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 1)
    zigzag = [value for _ in range(40_000) for value in (0, 0, 95, 70)]
    edit(root, lambda c: c["annotations"].append({**c["annotations"][0], "segmentation": [zigzag]}))
    result = convert(root, tmp_path / "o")
    ((reason, where),) = left_out(result, "object")
    assert "an outline of more than" in reason
    assert where.startswith("annotations.json, image 00.jpg")


@pytest.mark.parametrize("content", ["empty", "half", "text", "folder"])
def test_a_broken_image_is_left_out(tmp_path: Path, content: str) -> None:
    root = coco_source(tmp_path / "s", 2)
    path = root / "images" / "00.jpg"
    data = path.read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "half": data[:300], "text": b"words"}[content])
    result = convert(root, tmp_path / "o")
    assert result.written.images == {"train": 1}
    assert len(left_out(result)) == 1
    assert "00.jpg" in (tmp_path / "o" / "left_out.txt").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"images": 3, "annotations": {}, "categories": ""}', "null", "[1]",
     '{"images": [], "annotations": [], "categories": []}', "\xff\xfe", "1" * 5000,
     '{"images": [{"id": [], "file_name": {}}], "annotations": [3], "categories": [{"id": {}}]}'],
)  # fmt: skip
def test_broken_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").mkdir()
    keys = '"images" "annotations" "categories" "segmentation"'
    (tmp_path / "s" / "a.json").write_bytes(text.encode("latin-1"))
    if text.startswith("["):
        (tmp_path / "s" / "a.json").write_text(f"[{keys}, {text}")
    one_line(lambda: convert(tmp_path / "s", tmp_path / "o", format="coco"))
    assert names_in(tmp_path) == ["s"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=5,
)
PLACES = st.lists(st.integers(0, 40), min_size=1, max_size=3)


def mutate(value: object, path: list[int], by: object) -> object:
    """``value`` with one part, at the end of ``path``, replaced."""
    if not path or not isinstance(value, dict | list) or not value:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    keys = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
    key = keys[path[0] % len(keys)]
    copy[key] = mutate(copy[key], path[1:], by)
    return copy


@settings(max_examples=40, deadline=None)
@given(where=PLACES, by=JSON, kind=st.sampled_from(["coco", "labelme", "yolo"]))
def test_no_value_in_an_annotation_is_more_than_one_line(
    tmp_path_factory: pytest.TempPathFactory, where: list[int], by: object, kind: str
) -> None:
    root = coco_source(tmp_path_factory.mktemp("fuzz") / "s", 1)
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    if kind == "coco":
        path.write_text(json.dumps(mutate(content, where, by)))
    elif kind == "labelme":
        path.unlink()
        shape = {"label": "a", "points": box_points(1, 1, 5, 5), "shape_type": "polygon"}
        whole = {"shapes": [shape], "imagePath": "00.jpg", "imageHeight": 24, "imageWidth": 32}
        write_json(root / "images" / "00.json", mutate(whole, where, by))
    else:
        path.unlink()
        whole = {"train": ["images"], "names": ["a", "b"], "path": "."}
        write_json(root / "data.yaml", mutate(whole, where, by))
    out = root.parent / "o"
    try:
        images = sum(convert(root, out, format=kind).written.images.values())
    except UserError as error:
        images, message = 0, str(error)
        assert "\n" not in message
    assert images == out.exists()


def test_more_classes_than_ids(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s")
    many = [{"id": number, "name": f"c{number}"} for number in range(1, 256)]
    edit(root, lambda content: content.update(categories=many))
    assert "256 classes; 1 to 255" in one_line(lambda: convert(root, tmp_path / "o"))
    edit(root, lambda content: content.update(categories=many[:-1]))
    assert len(convert(root, tmp_path / "o").classes.names) == 255


# whole or absent


def test_a_stopped_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = coco_source(tmp_path / "s")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(root, tmp_path / "o", progress=stop)
    assert names_in(tmp_path) == ["s"]

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    message = one_line(lambda: convert(root, tmp_path / "o"))
    assert "No space left on device" in message
    assert names_in(tmp_path) == ["s"]


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    root = coco_source(tmp_path / "s", 2)
    shutil.rmtree(root / "images")
    message = one_line(lambda: convert(root, tmp_path / "o"))
    assert "2: no such file (first: annotations.json, image 00.jpg)" in message
    assert names_in(tmp_path) == ["s"]


# tables of colours


@pytest.mark.parametrize(
    "text",
    ["name,r,g,b\nred car,200,0,0\nsky,0,0,250\n", "red car 200 0 0\nsky 0 0 250",
     "200 0 0\tred car\r\n0 0 250\tsky\r\n", "# label:color_rgb:parts:actions\n"
     "red car:200,0,0::\nsky:0,0,250::\n", "red car;200;0;0\nsky;0;0;250",
     "Name, R, G, B\nred car, 200, 0, 0\nsky, 0, 0, 250",
     "red car,200,0,0\nvoid,1,1,1\nsky,0,0,250"],
)  # fmt: skip
def test_tables_as_people_write_them(text: str) -> None:
    table = parse_table(text, "t.csv", {"void"})
    assert table.names == ("red car", "sky")
    assert table.palette() == [(200, 0, 0), (0, 0, 250)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,0,0,256", "beyond 255"),
        ("a,0,0,1\nb,0,0,1", "two classes"),
        ("a,0,0,1\nb", "others none"),
    ],
)
def test_tables_that_cannot_be(text: str, words: str) -> None:
    message = one_line(lambda: parse_table(text, "t.csv"))
    assert "t.csv" in message
    assert words in message


def test_several_colours_of_one_class(tmp_path: Path) -> None:
    table = parse_table("a,1,1,1\nb,2,2,2\na,3,3,3\n", "t")
    assert table.names == ("a", "b")
    assert table.colors == (((1, 1, 1), 0), ((2, 2, 2), 1), ((3, 3, 3), 0))


def test_an_ignored_name_keeps_its_number(tmp_path: Path) -> None:
    photo(tmp_path / "s" / "images" / "a.png")
    ids = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH))
    save_ids(tmp_path / "s" / "masks" / "a.png", ids)
    (tmp_path / "s" / "classes.txt").write_text("road\nignore\nsky\n")
    assert convert(tmp_path / "s", tmp_path / "o").classes.names == ("road", "sky")
    written = read_ids(tmp_path / "o" / "masks" / "train" / "a.png")
    assert np.array_equal(written, np.array([0, 255, 1])[ids])


# the command


def test_the_command_ends_with_a_table_and_the_next_commands(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round trip: convert, check, and two steps of training on what was written."""
    monkeypatch.chdir(tmp_path)
    coco_source(tmp_path / "export", 6)
    (tmp_path / "export" / "images" / "05.jpg").unlink()
    code, output, error = run_cli("data", "convert", "export", "--out", "my_data", "--val", "0.4")
    assert (code, error) == (0, "")
    assert "coco -> my_data: 3 train, 2 val; 2 classes" in output
    pixels, covered = 3 * HEIGHT * WIDTH, 3 * 7 * 8
    (row,) = (line for line in output.splitlines() if line.startswith("cup"))
    assert row.split()[1:3] == [str(covered), f"({100 * covered / pixels:.1f}"]
    assert "1: no such file (annotations.json, image 05.jpg)" in output
    following = [line.split()[1:] for line in output.splitlines() if line.startswith("  aicsd")]
    assert [command[0] for command in following] == ["data", "train"]
    code, output, _ = run_cli(*following[0])
    assert code == 0
    assert "train: 3 images, 0 cannot be used" in output
    small = [part for key, value in TINY_MODEL.items() for part in (f"--model.{key}", value)]
    data = ["--data.name", "folder", "--data.root", "my_data", "--data.batch_size", 2,
            "--data.workers", 0, "--data.augment.crop", 32]  # fmt: skip
    code, _, error = run_cli("train", *data, *small, "--model.weights", "none", "--epochs", 2,
                             "--accelerator", "cpu", "--run", "run")  # fmt: skip
    assert code == 0, error
    code, _, error = run_cli("data", "convert", "export", "--out", "my_data")
    assert (code, error.count("\n")) == (2, 1)


TABLE = """name,r,g,b
building,128,0,0
car,128,0,128
door,128,128,0
pavement,128,128,128
road,128,64,0
sky,0,128,128
vegetation,0,128,0
window,0,0,128
ignored,0,0,0
"""


@pytest.mark.skipif(not LABELMEFACADE.is_dir(), reason="LabelMeFacade is not beside the project")
def test_labelmefacade(tmp_path: Path, run_cli: RunCli) -> None:
    """Six of its photos, as they lie there, by a table of colours in one command."""
    for folder in (
        "images/train",
        "images/val",
        "images/unlabelled",
        "masks_rgb/train",
        "masks_rgb/val",
    ):
        (tmp_path / "s" / folder).mkdir(parents=True)
        for path in sorted((LABELMEFACADE / folder).iterdir())[:2]:
            shutil.copy(path, tmp_path / "s" / folder)
    (tmp_path / "colors.csv").write_text(TABLE)
    table = ("--classes", tmp_path / "colors.csv")
    code, output, error = run_cli(
        "data", "convert", tmp_path / "s", "--out", tmp_path / "o", *table
    )
    assert (code, error) == (0, "")
    assert "2 train, 2 val, 2 unlabelled; 8 classes" in output
    assert "has no class" not in output
    rows = [line.split(",") for line in TABLE.splitlines()[1:]]
    ids = {
        tuple(map(int, row[1:])): 255 if row[0] == "ignored" else i for i, row in enumerate(rows)
    }
    for path in (tmp_path / "s" / "masks_rgb" / "val").iterdir():
        source = np.asarray(Image.open(path))
        written = read_ids(tmp_path / "o" / "masks" / "val" / path.name)
        for row, column in np.random.default_rng(0).integers(0, min(source.shape[:2]), (500, 2)):
            assert written[row, column] == ids[tuple(source[row, column, :3].tolist())]


def test_hidden_files_and_those_of_macs_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", "__MACOSX/c.txt", ".git/d.txt", "e/.f/g.txt", "e/h.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert Tree(tmp_path).files == ["a.txt", "e/h.txt"]


def test_the_box_of_the_oracle() -> None:
    assert inside(box_points(2, 3, 9, 11)).sum() == 7 * 8
