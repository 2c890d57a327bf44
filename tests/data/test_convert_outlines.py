"""YOLO and LabelMe: each pixel is that of an oracle in plain Python."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from convert_sources import HEIGHT, WIDTH, box_points, inside, near_edge, photo, write_json
from converted import RNG, SHAPE, TRIANGLE, Json, mask, names, reasons, run
from PIL import Image

# YOLO


def yolo_line(number: int, points: object) -> str:
    values = np.array(points, float).reshape(-1, 2) / (WIDTH, HEIGHT)
    return " ".join([str(number), *(f"{value:.8f}" for value in values.ravel())])


@pytest.mark.parametrize("train", ["../train/images", "train/images", "./train/images/"])
def test_yolo(tmp_path: Path, train: str) -> None:
    root = tmp_path / "s"
    for split, name in (("train", "a"), ("train", "b"), ("train", "c"), ("valid", "d")):
        photo(root / split / "images" / f"{name}.jpg")
        (root / split / "labels").mkdir(parents=True, exist_ok=True)
    large, small = box_points(4, 3, 28, 21), box_points(8, 6, 16, 12)
    labels = root / "train" / "labels"
    (labels / "a.txt").write_text(
        "\n".join([yolo_line(2, small), yolo_line(0, large), yolo_line(9, box_points(0, 0, 4, 3))])
    )
    (labels / "b.txt").write_text("0 0.5 0.5 0.25 0.5\nred 0.1\n\n1 0.1 0.2 0.3\n")
    (labels / "c.txt").write_text("\n")
    (root / "valid" / "labels" / "d.txt").write_text(yolo_line(1, TRIANGLE) + "\n")
    (root / "data.yaml").write_text(
        f"path: /somebody/elses/disk\ntrain: {train}\nval: ../valid/images\nnc: 3\n"
        "names: ['cup', 'plate', 'fork']\n"
    )
    result, out = run(root)
    assert result.format == "yolo"
    assert names(result) == ("background", "cup", "plate", "fork")
    expected = np.zeros(SHAPE, np.uint8)
    expected[inside(large)] = 1
    expected[inside(small)] = 3
    expected[:3, :4] = 255
    assert np.array_equal(mask(out, "train", "a"), expected)
    box = inside(box_points(12, 6, 20, 18))
    assert np.array_equal(mask(out, "train", "b"), np.where(box, 255, 0))
    sure = ~near_edge(TRIANGLE)
    assert np.array_equal(mask(out, "val", "d")[sure], 2 * inside(TRIANGLE)[sure])
    assert result.written.images == {"train": 2, "unlabelled": 1, "val": 1}
    assert sum(reasons(result, "object").values()) == 4


def test_yolo_lists_of_images(tmp_path: Path) -> None:
    root = tmp_path / "s"
    for name in "ab":
        photo(root / "images" / "all" / f"{name}.jpg")
        (root / "labels" / "all").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "all" / f"{name}.txt").write_text(yolo_line(0, box_points(0, 0, 8, 8)))
    (root / "train.txt").write_text("./images/all/a.jpg\n../../secret.jpg\n/etc/passwd\nnone.jpg\n")
    (root / "val.txt").write_text("images/all/b.jpg\n")
    (root / "set.yaml").write_text("train: train.txt\nval: val.txt\nnames: {0: x}\n")
    result, _ = run(root)
    assert result.written.images == {"train": 1, "val": 1}
    assert reasons(result, "image") == {
        "its path leads out of the source": 2,
        "no such file": 1,
    }


# LabelMe


def labelme(shapes: list[Json], path: str | None = "a.jpg", **more: object) -> Json:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": path,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **more,
    }


def shape(label: object, points: object, kind: str = "polygon", **more: object) -> Json:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def test_labelme(tmp_path: Path) -> None:
    root = tmp_path / "s"
    for name in "abcd":
        photo(root / f"{name}.jpg")
    stamp = RNG.random((6, 5)) < 0.5
    file = io.BytesIO()
    Image.fromarray(stamp).save(file, format="PNG")
    text = base64.b64encode(file.getvalue()).decode()
    shapes = [
        shape("road", box_points(0, 12, 32, 24)),
        shape("car", [[20, 20], [5, 10]], "rectangle"),
        shape("sun", [[26, 6], [29, 6]], "circle"),
        shape("car", [[30, -2], [34, 3]], "mask", mask=text),
        shape("road", [[1, 1], [5, 5]], "line"),
        shape("__ignore__", box_points(0, 0, 3, 3)),
        shape(None, box_points(0, 5, 3, 8)),
        shape("car", [[1, 1], [2, "x"], [3, 3]]),
    ]
    write_json(root / "a.json", labelme(shapes))
    write_json(root / "b.json", labelme([shape("car", TRIANGLE)], "C:\\photos\\b.jpg"))
    write_json(root / "c.json", labelme([], "c.jpg"))
    (root / "broken.json").write_text('{"shapes": [')
    result, out = run(root, val=0)
    assert result.format == "labelme"
    assert names(result) == ("background", "car", "road", "sun")
    expected = np.zeros(SHAPE, np.uint8)
    expected[12:] = 2
    expected[10:20, 5:20] = 1
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    expected[(rows + 0.5 - 6) ** 2 + (columns + 0.5 - 26) ** 2 <= 9] = 3
    expected[:4, 30:][stamp[2:, :2]] = 1
    expected[:3, :3] = 255
    expected[5:8, :3] = 255
    assert np.array_equal(mask(out, "train", "a"), expected)
    sure = ~near_edge(TRIANGLE)
    assert np.array_equal(mask(out, "train", "b")[sure], inside(TRIANGLE)[sure])
    assert result.written.images == {"train": 2, "unlabelled": 2}
    assert reasons(result, "file") == {"not readable": 1}
    assert sum(reasons(result, "object").values()) == 3


def test_labelme_order_of_classes_and_embedded_images(tmp_path: Path) -> None:
    root = tmp_path / "s"
    content = photo(tmp_path / "elsewhere" / "a.png")
    embedded = base64.b64encode(content).decode()
    root.mkdir()
    (root / "labels.txt").write_text("__ignore__\n_background_\nzebra\napple\n")
    shapes = [shape("apple", box_points(1, 1, 5, 5)), shape("_background_", box_points(2, 2, 3, 3))]
    write_json(root / "a.json", labelme(shapes, "../../elsewhere/a.png", imageData=embedded))
    result, out = run(root)
    assert names(result) == ("background", "zebra", "apple")
    assert (out / "images" / "train" / "a.png").read_bytes() == content
    expected = np.zeros(SHAPE, np.uint8)
    expected[1:5, 1:5] = 2
    expected[2, 2] = 0
    assert np.array_equal(mask(out, "train", "a"), expected)


def test_labelme_without_background(tmp_path: Path) -> None:
    photo(tmp_path / "s" / "a.jpg")
    write_json(tmp_path / "s" / "a.json", labelme([shape("car", box_points(1, 1, 5, 5))]))
    result, out = run(tmp_path / "s", background=False)
    assert names(result) == ("car",)
    assert np.array_equal(mask(out, "train", "a"), np.where(inside(box_points(1, 1, 5, 5)), 0, 255))
