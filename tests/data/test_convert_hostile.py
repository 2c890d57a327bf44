"""Sources that attack, lie, are broken or are too large: left out, or one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import one_line
from convert_sources import box_points, coco_source, edit, left_out, names_in, photo, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from aicsd.data.convert import convert
from aicsd.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "/etc/passwd",
        "images/../../secret.jpg",
        "..\\secret.jpg",
        "link.jpg",
        "folder/secret.jpg",
        "C:/secret.jpg",
        "\x00",
        "x" * 5000,
        "ring.jpg",
        "fifo.jpg",
        "images",
    ],
)
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
    [
        "",
        "{",
        "[" * 100_000,
        '{"images": 3, "annotations": {}, "categories": ""}',
        "null",
        "[1]",
        '{"images": [], "annotations": [], "categories": []}',
        "\xff\xfe",
        "1" * 5000,
        '{"images": [{"id": [], "file_name": {}}], "annotations": [3], "categories": [{"id": {}}]}',
    ],
)
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
