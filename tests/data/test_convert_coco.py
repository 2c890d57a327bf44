"""COCO and its panoptic form: each pixel is that of an oracle in plain Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from convert_sources import (
    HEIGHT,
    WIDTH,
    box_points,
    files_below,
    flat,
    inside,
    near_edge,
    packed,
    photo,
    runs_of,
    save_colors,
    write_json,
)
from converted import RNG, SHAPE, TRIANGLE, Json, mask, names, reasons, run

# COCO

CATEGORIES = [
    {"id": 7, "name": "car", "supercategory": "vehicle"},
    {"id": 3, "name": "person", "supercategory": "person"},
    {"id": 9, "name": "vehicle", "supercategory": "none"},
]


def coco(images: list[Json], annotations: list[Json], categories: list[Json] | None = None) -> Json:
    return {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}


def image_entry(number: int, name: str) -> Json:
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}


def annotation(image: int, category: int, segmentation: object, **more: object) -> Json:
    bbox = [2, 2, 5, 5]
    return {
        "id": image * 10,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "segmentation": segmentation,
        "iscrowd": 0,
        **more,
    }


def coco_tree(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """COCO's own layout; returns the masks of the first train and val image."""
    for split, count in (("train2017", 3), ("val2017", 1)):
        for number in range(count):
            photo(root / "images" / split / f"{split[0]}{number}.jpg")
    large, small = box_points(2, 3, 20, 18), box_points(10, 10, 14, 15)
    blob = RNG.random(SHAPE) < 0.3
    crowd = np.zeros(SHAPE, bool)
    crowd[:, 25:] = True
    train = coco(
        [image_entry(n, f"t{n}.jpg") for n in range(3)] + [image_entry(9, "gone.jpg")],
        [
            # the small one comes first and still lies on top
            annotation(0, 3, [flat(small)]),
            annotation(0, 7, [flat(large)]),
            annotation(0, 3, {"counts": runs_of(crowd), "size": [*SHAPE]}, iscrowd=1),
            annotation(1, 3, [flat(TRIANGLE), flat(box_points(0, 0, 2, 2))]),
        ],
    )
    val = coco(
        [image_entry(0, "v0.jpg")],
        [annotation(0, 7, {"counts": packed(runs_of(blob)), "size": [*SHAPE]})],
    )
    write_json(root / "annotations" / "instances_train2017.json", train)
    write_json(root / "annotations" / "instances_val2017.json", val)
    write_json(root / "annotations" / "person_keypoints_train2017.json", train)
    write_json(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    expected = np.zeros(SHAPE, np.uint8)
    expected[crowd] = 1
    expected[inside(large)] = 2
    expected[inside(small)] = 1
    return expected, np.where(blob, 2, 0)


def test_coco(tmp_path: Path) -> None:
    first, val = coco_tree(tmp_path / "s")
    result, out = run(tmp_path / "s")
    assert result.format == "coco"
    assert names(result) == ("background", "person", "car")  # by category id
    assert result.written.images == {"train": 2, "unlabelled": 1, "val": 1}
    assert np.array_equal(mask(out, "train", "t0"), first)
    assert np.array_equal(mask(out, "val", "v0"), val)
    sure = ~near_edge(TRIANGLE)
    expected = inside(TRIANGLE) | inside(box_points(0, 0, 2, 2))
    assert np.array_equal(mask(out, "train", "t1")[sure], expected[sure])
    assert reasons(result, "image") == {"no such file": 1}
    copied, source = out / "images" / "train" / "t0.jpg", tmp_path / "s" / "images" / "train2017"
    assert copied.read_bytes() == (source / "t0.jpg").read_bytes()


def test_coco_objects_that_cannot_be_painted_are_ignored_pixels(tmp_path: Path) -> None:
    photo(tmp_path / "s" / "a.png")
    good = flat(box_points(20, 10, 30, 20))
    box = inside(box_points(2, 2, 7, 7))
    elsewhere = flat(box_points(10, 2, 14, 6))
    bad: list[object] = [
        [], None, "text", [[1, 2, 3]], [[1, 2, 3, "4", 5, 6]], [[1, 2, 3, float("nan"), 5, 6]],
        [[1, 2, 1e30, 4, 5, 6]], [[1e7, 2, 3, 4, 5, 6]], [[[1, 2], [3, 4]]], {"counts": "!!"},
        {"counts": [10**9, 5], "size": [*SHAPE]}, {"counts": [5], "size": [*SHAPE]},
        {"counts": "0", "size": [*SHAPE]}, {"counts": "`" * 40, "size": [*SHAPE]},
        {"counts": [3, -3, HEIGHT * WIDTH], "size": [*SHAPE]}, {"counts": 3, "size": [*SHAPE]},
        {"counts": packed(runs_of(np.ones((9, 9), bool))), "size": [9, 9]},
        {"counts": [True] * (HEIGHT * WIDTH), "size": [*SHAPE]},
    ]  # fmt: skip
    for segmentation in bad:
        content = coco(
            [image_entry(0, "a.png")], [annotation(0, 7, segmentation), annotation(0, 3, [good])]
        )
        write_json(tmp_path / "s" / "a.json", content)
        result, out = run(tmp_path / "s")
        expected = np.zeros(SHAPE, np.uint8)
        expected[inside(box_points(20, 10, 30, 20))] = 1
        expected[box] = 255
        assert np.array_equal(mask(out, "train", "a"), expected), segmentation
        assert sum(reasons(result, "object").values()) == 1
        assert "left_out.txt" in files_below(out)
        shutil.rmtree(out)
    # an object without class has a place
    annotations = [annotation(0, 99, [elsewhere]), annotation(0, 3, [good])]
    write_json(tmp_path / "s" / "a.json", coco([image_entry(0, "a.png")], annotations))
    result, out = run(tmp_path / "s")
    assert np.array_equal(mask(out, "train", "a") == 255, inside(box_points(10, 2, 14, 6)))
    assert reasons(result, "object") == {"no class": 1}


def test_coco_as_roboflow_exports_it(tmp_path: Path) -> None:
    """Images beside the annotations, names that repeat in the splits, a category of categories."""
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "cup", "supercategory": "things"},
    ]
    for split in ("train", "valid", "test"):
        photo(tmp_path / "s" / split / "0001.jpg", (HEIGHT, WIDTH + len(split)))
        entry = {**image_entry(5, "0001.jpg"), "width": WIDTH + len(split)}
        content = coco([entry], [annotation(5, 1, [flat(box_points(1, 1, 4, 4))])], categories)
        write_json(tmp_path / "s" / split / "_annotations.coco.json", content)
    result, out = run(tmp_path / "s")
    assert names(result) == ("background", "cup")
    assert result.written.images == {"train": 1, "val": 1, "test": 1}
    for split, width in (("train", 5), ("val", 5), ("test", 4)):
        assert mask(out, split, "0001").shape == (HEIGHT, WIDTH + width)


def test_coco_of_another_size_than_its_image(tmp_path: Path) -> None:
    photo(tmp_path / "s" / "a.png")
    photo(tmp_path / "s" / "b.png", (HEIGHT + 1, WIDTH))
    shapes = [annotation(n, 7, [flat(box_points(1, 1, 9, 9))]) for n in (0, 1)]
    write_json(
        tmp_path / "s" / "x.json", coco([image_entry(0, "a.png"), image_entry(1, "b.png")], shapes)
    )
    result, _ = run(tmp_path / "s")
    assert result.written.images == {"train": 1}
    assert reasons(result, "image") == {"its annotation is of another size": 1}


# panoptic


def test_panoptic(tmp_path: Path) -> None:
    root = tmp_path / "s"
    photo(root / "val2017" / "000.jpg")
    photo(root / "val2017" / "001.jpg")
    segments = RNG.choice([0, 5, 300, 70000, 123], SHAPE)
    colors = {n: (n % 256, n // 256 % 256, n // 65536) for n in (0, 5, 300, 70000, 123)}
    save_colors(root / "annotations" / "panoptic_val2017" / "000.png", segments, colors)
    info = [
        {"id": 5, "category_id": 184},
        {"id": 300, "category_id": 1, "iscrowd": 1},
        {"id": 70000, "category_id": 1},
    ]
    entries = [
        {"image_id": 0, "file_name": "000.png", "segments_info": info},
        {"image_id": 1, "file_name": "001.png", "segments_info": []},
    ]
    categories = [{"id": 1, "name": "person", "isthing": 1}, {"id": 184, "name": "tree-merged"}]
    content = coco([image_entry(0, "000.jpg"), image_entry(1, "001.jpg")], entries, categories)
    write_json(root / "annotations" / "panoptic_val2017.json", content)
    result, out = run(root)
    assert result.format == "coco-panoptic"
    assert names(result) == ("person", "tree-merged")
    expected = np.select([segments == 5, segments == 300, segments == 70000], [1, 0, 0], 255)
    assert np.array_equal(mask(out, "val", "000"), expected)
    assert reasons(result, "image") == {"no such mask": 1}
    assert reasons(result, "pixel") == {"a segment without class": (segments == 123).sum()}
