"""Formats that store masks: every pixel has the class of its value or colour."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from convert_sources import HEIGHT, WIDTH, photo, read_ids, save_colors, save_ids
from converted import RNG, SHAPE, mask, names, reasons, run
from PIL import Image

from aicsd.data.convert import FORMATS
from aicsd.data.voc import voc_color

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


def test_voc_with_an_ignored_name_among_the_others(tmp_path: Path) -> None:
    """Its pixels are ignored, and the names behind it keep their pixels."""
    ids = RNG.choice([0, 1, 2, 3, 255], SHAPE)
    root = tmp_path / "s"
    photo(root / "JPEGImages" / "a.jpg")
    save_ids(root / "SegmentationClass" / "a.png", ids, VOC_PALETTE)
    (root / "class_names.txt").write_text("__ignore__\n_background_\nignore\ncat\ndog\n")
    result, out = run(root, val=0)
    assert names(result) == ("_background_", "cat", "dog")
    wanted = np.select([ids == 0, ids == 2, ids == 3], [0, 1, 2], 255)
    assert np.array_equal(mask(out, "train", "a"), wanted)
    assert result.classes.palette[1] == tuple(VOC_PALETTE[6:9])


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
    [
        ("images/train/a.jpg", "masks_rgb/train/a.png"),
        ("train/a.jpg", "train_labels/a_L.png"),
        ("train/a.jpg", "trainannot/a.png"),
        ("train/images/a.jpg", "train/masks/a.png"),
        ("train/a.jpg", "train/a_mask.png"),
        ("train/img/a_L.jpg", "train/gt/a_L.png"),
    ],
)
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
    shutil.rmtree(out)
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
    files = sorted(Path(__file__).parent.glob("test_convert_*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    for known in FORMATS:
        assert f'result.format == "{known.name}"' in text
