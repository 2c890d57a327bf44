"""Every format on a tiny source made by hand: each pixel is that of an oracle in plain Python."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
    read_ids,
    runs_of,
    save_colors,
    save_ids,
    write_json,
)
from PIL import Image

from aicsd.data import check_dataset, open_dataset
from aicsd.data.classes_file import read_classes
from aicsd.data.convert import FORMATS, Conversion, convert
from aicsd.data.voc import voc_color

SHAPE = (HEIGHT, WIDTH)
TRIANGLE = [(3.2, 2.1), (28.7, 9.4), (11.0, 21.6)]
RNG = np.random.default_rng(0)


def run(source: Path, **options: object) -> tuple[Conversion, Path]:
    """Convert, and check what every conversion promises."""
    out = source.parent / "out"
    result = convert(source, out, **options)  # type: ignore[arg-type]
    for split, count in result.written.images.items():
        assert len(list((out / "images" / split).iterdir())) == count
        if split != "unlabelled":
            data = open_dataset("folder", str(out), split)
            assert list(check_dataset(data, decode_images=True)) == []
            counts = sum(
                np.bincount(data.read(i).mask.ravel(), minlength=256) for i in range(count)
            )
            assert np.array_equal(counts, result.written.pixels[split])
    assert read_classes(out / "classes.txt") == result.classes
    return result, out


def reasons(result: Conversion, kind: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for remark in result.written.remarks:
        if remark.kind == kind:
            found[remark.reason] = found.get(remark.reason, 0) + remark.number
    return found


def names(result: Conversion) -> tuple[str, ...]:
    return result.classes.names


def mask(out: Path, split: str, name: str) -> np.ndarray:
    return read_ids(out / "masks" / split / f"{name}.png")


# COCO

CATEGORIES = [
    {"id": 7, "name": "car", "supercategory": "vehicle"},
    {"id": 3, "name": "person", "supercategory": "person"},
    {"id": 9, "name": "vehicle", "supercategory": "none"},
]


Json = dict[str, Any]


def coco(images: list[Json], annotations: list[Json], categories: list[Json] | None = None) -> Json:
    return {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}


def image_entry(number: int, name: str) -> Json:
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}


def annotation(image: int, category: int, segmentation: object, **more: object) -> Json:
    bbox = [2, 2, 5, 5]
    return {"id": image * 10, "image_id": image, "category_id": category, "bbox": bbox,
            "segmentation": segmentation, "iscrowd": 0, **more}  # fmt: skip


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
        content = coco([image_entry(0, "a.png")], [annotation(0, 7, segmentation),
                                                   annotation(0, 3, [good])])  # fmt: skip
        write_json(tmp_path / "s" / "a.json", content)
        result, out = run(tmp_path / "s")
        expected = np.zeros(SHAPE, np.uint8)
        expected[inside(box_points(20, 10, 30, 20))] = 1
        expected[box] = 255
        assert np.array_equal(mask(out, "train", "a"), expected), segmentation
        assert sum(reasons(result, "object").values()) == 1
        assert "left_out.txt" in files_below(out)
        _remove(out)
    # an object without class has a place
    annotations = [annotation(0, 99, [elsewhere]), annotation(0, 3, [good])]
    write_json(tmp_path / "s" / "a.json", coco([image_entry(0, "a.png")], annotations))
    result, out = run(tmp_path / "s")
    assert np.array_equal(mask(out, "train", "a") == 255, inside(box_points(10, 2, 14, 6)))
    assert reasons(result, "object") == {"no class": 1}


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def test_coco_as_roboflow_exports_it(tmp_path: Path) -> None:
    """Images beside the annotations, names that repeat in the splits, a category of categories."""
    categories = [{"id": 0, "name": "things", "supercategory": "none"},
                  {"id": 1, "name": "cup", "supercategory": "things"}]  # fmt: skip
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
    info = [{"id": 5, "category_id": 184}, {"id": 300, "category_id": 1, "iscrowd": 1},
            {"id": 70000, "category_id": 1}]  # fmt: skip
    entries = [{"image_id": 0, "file_name": "000.png", "segments_info": info},
               {"image_id": 1, "file_name": "001.png", "segments_info": []}]  # fmt: skip
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
        "its path leads out of the source": 2, "no such file": 1,
    }  # fmt: skip


# VOC and CVAT

VOC_PALETTE = [value for number in range(256) for value in voc_color(number)]


def voc_ids() -> np.ndarray:
    return RNG.choice([0, 1, 15, 255], SHAPE)


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "s"
    base = root / "VOCdevkit" / "VOC2012"
    masks = {name: voc_ids() for name in ("t", "v", "w", "rgb")}
    for name, ids in masks.items():
        photo(base / "JPEGImages" / f"{name}.jpg")
        if name == "rgb":
            colors = {n: voc_color(n) for n in (0, 1, 15)} | {255: (224, 224, 192)}
            save_colors(base / "SegmentationClass" / f"{name}.png", ids, colors)
        else:
            save_ids(base / "SegmentationClass" / f"{name}.png", ids, VOC_PALETTE)
        save_ids(base / "SegmentationObject" / f"{name}.png", ids, VOC_PALETTE)
    photo(base / "JPEGImages" / "only_boxes.jpg")
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, text in (("train", "t\nrgb\n"), ("val", "v\nw\n"), ("trainval", "t\nrgb\nv\nw\n")):
        (lists / f"{split}.txt").write_text(text)
    result, out = run(root)
    assert result.format == "voc"
    assert names(result)[:2] == ("background", "aeroplane")
    assert len(names(result)) == 21
    assert result.written.images == {"train": 2, "val": 2}
    for split, name in (("train", "t"), ("train", "rgb"), ("val", "v"), ("val", "w")):
        assert np.array_equal(mask(out, split, name), masks[name])


def test_voc_of_labelme_with_own_names(tmp_path: Path) -> None:
    root = tmp_path / "s"
    ids = RNG.choice([0, 1, 2, 7, 255], SHAPE)
    for name in ("a", "b"):
        photo(root / "JPEGImages" / f"{name}.jpg")
        save_ids(root / "SegmentationClass" / f"{name}.png", ids, VOC_PALETTE)
    save_ids(root / "SegmentationClassVisualization" / "a.png", ids, VOC_PALETTE)
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    result, out = run(root, val=0.5)
    assert names(result) == ("_background_", "cat", "dog")
    assert result.written.images == {"train": 1, "val": 1}
    written = next((out / "masks" / "train").iterdir())
    assert np.array_equal(read_ids(written), np.where(ids == 7, 255, ids))
    assert reasons(result, "pixel") == {"id 7 has no class": 2 * (ids == 7).sum()}


LABEL_MAP = """# label:color_rgb:parts:actions
background:0,0,0::
road surface:128,64,128::
car:10,20,30:wheel,door:driving
"""


@pytest.mark.parametrize("kind", ["rgb", "palette", "ids"])
def test_cvat(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "s"
    ids = RNG.choice([0, 1, 2, 3], SHAPE)
    colors = {0: (0, 0, 0), 1: (128, 64, 128), 2: (10, 20, 30), 3: (9, 9, 9)}
    photo(root / "photos" / "sub" / "a b.jpg")
    place = root / "SegmentationClass" / "sub" / "a b.png"
    if kind == "rgb":
        save_colors(place, ids, colors)
    elif kind == "palette":  # in another order than the label map
        order = np.array([2, 0, 3, 1])
        save_ids(place, order[ids], [v for n in np.argsort(order) for v in colors[int(n)]])
    else:
        save_ids(place, ids)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "default.txt").write_text("sub/a b\nsub/lost\n")
    (root / "labelmap.txt").write_text(LABEL_MAP)
    result, out = run(root)
    assert result.format == "cvat"
    assert names(result) == ("background", "road surface", "car")
    assert result.classes.palette == ((0, 0, 0), (128, 64, 128), (10, 20, 30))
    assert np.array_equal(mask(out, "train", "a b"), np.where(ids == 3, 255, ids))
    (reason,) = reasons(result, "pixel")
    assert ("colour 9,9,9" if kind != "ids" else "id 3") in reason
    assert reasons(result, "image") == {"no such file (export with images)": 1}


# LabelMe


def labelme(shapes: list[Json], path: str | None = "a.jpg", **more: object) -> Json:
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path,
            "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}  # fmt: skip


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


# masks with tables


def test_roboflow(tmp_path: Path) -> None:
    root = tmp_path / "s"
    ids = {split: RNG.choice([0, 1, 2, 4], SHAPE) for split in ("train", "valid")}
    for split, values in ids.items():
        photo(root / split / "x_jpg.rf.0a.jpg")
        photo(root / split / "no_mask.jpg")
        save_ids(root / split / "x_jpg.rf.0a_mask.png", values)
        order = (
            "0, background\n1, cup\n2, fork"
            if split == "train"
            else "0, background\n1, fork\n2, cup"
        )
        (root / split / "_classes.csv").write_text(f"Pixel Value, Class\n{order}\n")
    result, out = run(root)
    assert result.format == "roboflow"
    assert names(result) == ("background", "cup", "fork")
    first = np.where(ids["train"] == 4, 255, ids["train"])
    second = np.array([0, 2, 1, 255, 255])[ids["valid"]]
    assert np.array_equal(mask(out, "train", "x_jpg.rf.0a"), first)
    assert np.array_equal(mask(out, "val", "x_jpg.rf.0a"), second)
    assert result.written.images == {"train": 1, "val": 1, "unlabelled": 2}


INFO = """Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1576\t11664\t1172\t1\twall
2\t0.1072\t6046\t612\t1\tbuilding, edifice
3\t0.0878\t8265\t796\t1\tscreen, silver screen
4\t0.0878\t8265\t796\t1\tscreen, crt screen
"""


def test_ade20k(tmp_path: Path) -> None:
    root = tmp_path / "s"
    base = root / "ADEChallengeData2016"
    ids = RNG.choice([0, 1, 2, 4], SHAPE)
    for split in ("training", "validation"):
        photo(base / "images" / split / f"ADE_{split}_1.jpg")
        save_ids(base / "annotations" / split / f"ADE_{split}_1.png", ids)
    (base / "objectInfo150.txt").write_text(INFO)
    result, out = run(root)
    assert result.format == "ade20k"
    assert names(result) == ("wall", "building", "screen, silver screen", "screen, crt screen")
    assert result.written.images == {"train": 1, "val": 1}
    expected = np.where(ids == 0, 255, ids - 1)
    assert np.array_equal(mask(out, "train", "ADE_training_1"), expected)


COLORS = {0: (128, 0, 0), 1: (0, 128, 0), 2: (0, 0, 0), 3: (1, 2, 3)}
TABLE = "name,r,g,b\nbuilding,128,0,0\ntall tree,0,128,0\nignore,0,0,0\n"


@pytest.mark.parametrize(
    ("image", "mask_file"),
    [("images/train/a.jpg", "masks_rgb/train/a.png"), ("train/a.jpg", "train_labels/a_L.png"),
     ("train/a.jpg", "trainannot/a.png"), ("train/images/a.jpg", "train/masks/a.png"),
     ("train/a.jpg", "train/a_mask.png"), ("train/img/a_L.jpg", "train/gt/a_L.png")],
)  # fmt: skip
def test_masks_of_colours(tmp_path: Path, image: str, mask_file: str) -> None:
    root = tmp_path / "s"
    ids = RNG.choice([0, 1, 2, 3], SHAPE)
    photo(root / image)
    save_colors(root / mask_file, ids, {n: (*color, 255) for n, color in COLORS.items()})
    (root / "classes.csv").write_text(TABLE)
    result, out = run(root)
    assert result.format == "masks"
    assert names(result) == ("building", "tall tree")
    assert result.classes.palette == (COLORS[0], COLORS[1])
    name = Path(image).stem
    assert np.array_equal(mask(out, "train", name), np.where(ids >= 2, 255, ids))
    assert reasons(result, "pixel") == {"colour 1,2,3 has no class": (ids == 3).sum()}


def test_masks_of_ids_and_of_black_and_white(tmp_path: Path) -> None:
    ids = RNG.choice([0, 1], SHAPE)
    photo(tmp_path / "ids" / "images" / "a.png")
    save_ids(tmp_path / "ids" / "masks" / "a.png", ids)
    (tmp_path / "ids" / "classes.txt").write_text("ground\ncat\n")
    _, out = run(tmp_path / "ids")
    assert np.array_equal(mask(out, "train", "a"), ids)
    _remove(out)
    photo(tmp_path / "white" / "images" / "a.png")
    save_ids(tmp_path / "white" / "masks" / "a.png", ids * 255)
    (tmp_path / "white" / "classes.csv").write_text("ground,0,0,0\ncat,255,255,255\n")
    _, out = run(tmp_path / "white")
    assert np.array_equal(mask(out, "train", "a"), ids)


def test_masks_stored_in_few_bits_and_with_loss(tmp_path: Path) -> None:
    """Pillow shows the 4-bit grey values 0 to 2 as 0, 17, 34; a JPEG shows others."""
    import cv2

    root = tmp_path / "s"
    ids = RNG.choice([0, 1, 2], SHAPE)
    for name in "ab":
        photo(root / "images" / f"{name}.png")
    (root / "masks").mkdir()
    packed_rows = (ids[:, ::2] << 4 | ids[:, 1::2]).astype(np.uint8)
    (root / "masks" / "a.png").write_bytes(grey_png(packed_rows, bits=4))
    cv2.imwrite(str(root / "masks" / "b.jpg"), ids.astype(np.uint8))
    (root / "classes.txt").write_text("x\ny\nz\n")
    result, out = run(root)
    assert np.array_equal(mask(out, "train", "a"), ids)
    assert reasons(result, "image") == {"a mask that cannot be read": 1}
    assert "is a JPEG" in result.text()


def grey_png(rows: np.ndarray, bits: int) -> bytes:
    """A PNG of packed grey rows, written by hand: libraries write 8 bits."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# Hugging Face


def picture_bytes(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(file, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("way", ["parquet", "saved", "saved_dict"])
def test_huggingface(tmp_path: Path, way: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    root = tmp_path / "s"
    root.mkdir()
    ids = [RNG.choice([0, 1, 3, 255], SHAPE) for _ in range(3)]
    photos = [picture_bytes(RNG.integers(0, 256, (*SHAPE, 3)), "JPEG") for _ in range(3)]
    rows = {
        "pixel_values": [{"bytes": photo, "path": None} for photo in photos],
        "label": [{"bytes": picture_bytes(values), "path": "../../x.png"} for values in ids],
        "scene": ["street"] * 3,
    }
    features = datasets.Features(
        pixel_values=datasets.Image(), label=datasets.Image(), scene=datasets.Value("string")
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    if way == "parquet":
        data.to_parquet(root / "data" / "train-00000-of-00001.parquet")
        data.select([2]).to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    elif way == "saved":
        data.save_to_disk(root)
    else:
        datasets.DatasetDict(train=data, validation=data.select([2])).save_to_disk(root)
    (root / "id2label.json").write_text(json.dumps({"3": "car", "0": "road", "1": "tree"}))
    result, out = run(root, val=0)
    assert result.format == "huggingface"
    assert names(result) == ("road", "tree", "car")
    assert result.written.images == ({"train": 3} if way == "saved" else {"train": 3, "val": 1})
    prefix = "row" if way == "saved" else "train"
    for number, values in enumerate(ids):
        found = mask(out, "train", f"{prefix}_{number:06}")
        assert np.array_equal(found, np.array([0, 1, 255, 2] + [255] * 252)[values])
        image = out / "images" / "train" / f"{prefix}_{number:06}.jpg"
        assert image.read_bytes() == photos[number]


def test_huggingface_rows_that_hold_paths_open_none(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    secret = tmp_path / "secret.png"
    photo(secret)
    (tmp_path / "s").mkdir()
    good = {"bytes": picture_bytes(np.zeros((*SHAPE, 3))), "path": None}
    label = {"bytes": picture_bytes(np.zeros(SHAPE)), "path": None}
    absent = {"bytes": None, "path": str(secret)}
    table = pyarrow.table({"image": [good, absent, good], "mask": [label, label, absent]})
    parquet.write_table(table, tmp_path / "s" / "train.parquet")
    (tmp_path / "s" / "classes.txt").write_text("only\n")
    result, out = run(tmp_path / "s")
    assert result.written.images == {"train": 1, "unlabelled": 1}
    assert reasons(result, "image") == {"the row holds no bytes of an image": 1}
    assert secret.read_bytes() not in [p.read_bytes() for p in out.rglob("*.png")]


# all of them


def test_every_format_has_a_test_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for known in FORMATS:
        assert f'result.format == "{known.name}"' in text
