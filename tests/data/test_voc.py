"""VOC 2012 and SBD: layouts, splits, which mask counts, and every error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix
from tiny_runs import FIT_FLAGS, model_flags

from aicsd.data import check_dataset, open_dataset, open_images, survey
from aicsd.data.voc import CLASSES, COUNTS, open_sbd, voc_color
from aicsd.errors import UserError

RunCli = Callable[..., tuple[int, str, str]]

# (width, height): landscape, portrait, odd, one row
SIZES = {"2007_a": (50, 37), "2007_b": (33, 50), "2008_c": (17, 17), "2008_d": (9, 1)}
TRAIN, VAL, TEST = ["2007_a", "2007_b"], ["2008_c", "2008_d"], ["2008_t"]


def mask_of(name: str) -> np.ndarray:
    """Each has another pattern; all have void, and ``2007_b`` a single pixel of the last class."""
    width, height = SIZES.get(name, (20, 10))
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1 + sum(map(ord, name)) % 19
    mask[0, :3] = 255
    if name == "2007_b":
        mask[-1, 0] = 20
    return mask


def write_image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def write_png(path: Path, mask: np.ndarray) -> None:
    """A palette PNG as VOC has them: the colours are of the palette, the values are the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette([part for class_id in range(256) for part in voc_color(class_id)])
    picture.save(path)


def write_mat(path: Path, mask: np.ndarray) -> None:
    """SBD's struct: boundaries and segmentation of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for row in boundaries:
        row[0] = csc_matrix(mask.shape[:2], dtype=np.float64)
    fields = {
        "Boundaries": boundaries,
        "Segmentation": mask,
        "CategoriesPresent": np.unique(mask[(mask > 0) & (mask < 255)]),
    }
    savemat(path, {"GTcls": fields}, do_compression=True)


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """VOC2012 with two images for training, two for validation and one for the test."""
    place = tmp_path / "VOCdevkit" / "VOC2012"
    for name, size in SIZES.items():
        write_image(place / "JPEGImages" / f"{name}.jpg", size)
        write_png(place / "SegmentationClass" / f"{name}.png", mask_of(name))
    write_image(place / "JPEGImages" / "2008_t.jpg", (20, 10))
    lists = {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL, "test": TEST}
    for split, names in lists.items():
        write_list(place / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return place


SBD_MASK = np.full((10, 20), 7, np.uint8)
"""Of the images of SBD alone; where VOC has a mask, SBD's is this too, of the image's size."""


@pytest.fixture
def sbd(tmp_path: Path, devkit: Path) -> Path:
    """SBD's release: of its five images one is VOC's for training, one VOC's for validation."""
    place = tmp_path / "sbd" / "benchmark_RELEASE" / "dataset"
    for name in ("2007_a", "2008_c", "2009_x", "2009_y", "2010_z"):
        size = SIZES.get(name, (20, 10))
        write_image(place / "img" / f"{name}.jpg", size)
        write_mat(place / "cls" / f"{name}.mat", np.full(size[::-1], 7, np.uint8))
        if name in ("2009_x", "2010_z"):
            write_image(devkit / "JPEGImages" / f"{name}.jpg", size)
    write_list(place / "train.txt", ["2009_x", "2008_c", "2007_a"])
    write_list(place / "val.txt", ["2010_z", "2009_y"])
    return tmp_path / "sbd"


def add_aug_folder(devkit: Path) -> None:
    for name in ("2007_a", "2007_b", "2008_c", "2009_x", "2009_y", "2010_z"):
        size = SIZES.get(name, (20, 10))
        write_png(devkit / "SegmentationClassAug" / f"{name}.png", np.full(size[::-1], 7, np.uint8))
        if name.startswith(("2009", "2010")):
            write_image(devkit / "JPEGImages" / f"{name}.jpg", size)


def root_of(devkit: Path) -> str:
    return str(devkit.parents[1])


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# VOC alone


@pytest.mark.parametrize("above", [0, 1, 2])
def test_every_root_finds_the_same_files(devkit: Path, above: int) -> None:
    root = (devkit, *devkit.parents)[above]
    dataset = open_dataset("voc", str(root), "train")
    assert dataset.names == TRAIN
    for index, name in enumerate(TRAIN):
        image, mask, _ = dataset.read(index)
        assert np.array_equal(mask, mask_of(name))
        assert image.shape == (*mask.shape, 3)
        with Image.open(devkit / "JPEGImages" / f"{name}.jpg") as picture:
            assert np.abs(image.astype(int) - np.asarray(picture)).max() <= 4


@pytest.mark.parametrize(("split", "names"), [("val", VAL), ("trainval", TRAIN + VAL)])
def test_splits_are_the_lists_in_their_order(devkit: Path, split: str, names: list[str]) -> None:
    assert open_dataset("voc", root_of(devkit), split).names == names
    paths = open_images("voc", root_of(devkit), split)
    assert paths == [devkit / "JPEGImages" / f"{name}.jpg" for name in names]


def test_the_single_pixel_and_the_void_outline_are_kept(devkit: Path) -> None:
    mask = open_dataset("voc", root_of(devkit), "train").read(1).mask
    assert mask.shape == (50, 33)
    assert (mask == 20).sum() == 1
    assert mask[-1, 0] == 20
    assert (mask == 255).sum() == 3


def test_an_image_without_any_label(devkit: Path) -> None:
    write_png(devkit / "SegmentationClass" / "2008_c.png", np.full((17, 17), 255, np.uint8))
    dataset = open_dataset("voc", root_of(devkit), "val")
    assert (dataset.read(0).mask == 255).all()
    assert list(check_dataset(dataset, decode_images=True)) == []


def test_classes_and_palette_are_those_of_voc() -> None:
    assert len(CLASSES.names) == len(CLASSES.palette) == 21
    assert CLASSES.names[0] == "background"
    assert list(CLASSES.names[1:]) == sorted(CLASSES.names[1:])
    for class_id, color in {
        0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128),
        7: (128, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128),
    }.items():  # fmt: skip
        assert CLASSES.palette[class_id] == color
    assert voc_color(255) == (224, 224, 192)


def test_a_list_of_ones_own_is_a_split(devkit: Path) -> None:
    path = devkit / "ImageSets" / "Segmentation" / "few.txt"
    path.write_text(
        "\ufeff/JPEGImages/2008_c.jpg /SegmentationClass/2008_c.png\r\n\n2007_a  1\n2008_c\n"
    )
    assert open_dataset("voc", root_of(devkit), "few").names == ["2008_c", "2007_a"]


# the test split


def test_the_test_split_has_images_only(devkit: Path, run_cli: RunCli) -> None:
    root = root_of(devkit)
    assert open_images("voc", root, "test") == [devkit / "JPEGImages" / "2008_t.jpg"]
    assert "not public" in one_line(lambda: open_dataset("voc", root, "test"))
    flags = ("--data.name", "voc", "--data.root", root)
    code, output, error = run_cli("data", "check", *flags, "--data.split", "test")
    assert (code, error) == (0, "")
    assert "test: 1 images, 0 cannot be used" in output
    assert "only images are checked" in output
    (devkit / "JPEGImages" / "2008_t.jpg").unlink()
    assert "2008_t.jpg" in one_line(lambda: open_images("voc", root, "test"))
    code, _, error = run_cli("data", "check", *flags, "--data.split", "test")
    assert (code, error.count("\n")) == (2, 1)
    assert "2008_t.jpg" in error


def test_training_on_the_test_split_is_refused(
    devkit: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    code, _, error = run_cli(
        "train", "--data.name", "voc", "--data.root", root_of(devkit),
        "--data.train_split", "test", "--run", tmp_path / "run",
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    assert "VOC test are not public" in error
    assert not (tmp_path / "run").exists()


def test_masks_of_the_test_split_are_used_where_they_are(devkit: Path) -> None:
    write_png(devkit / "SegmentationClass" / "2008_t.png", mask_of("2008_t"))
    dataset = open_dataset("voc", root_of(devkit), "test")
    assert np.array_equal(dataset.read(0).mask, mask_of("2008_t"))


# SBD

AUGMENTED = ["2007_a", "2007_b", "2009_x", "2009_y", "2010_z"]


def augmented(devkit: Path, **options: object) -> dict[str, tuple[Path, np.ndarray]]:
    dataset = open_dataset("voc", root_of(devkit), "trainaug", options)
    masks = [dataset.read(index).mask for index in range(len(dataset))]
    paths = open_images("voc", root_of(devkit), "trainaug", options)
    return dict(zip(dataset.names, zip(paths, masks, strict=True), strict=True))


def assert_augmented(found: dict[str, tuple[Path, np.ndarray]]) -> None:
    for name in TRAIN:
        assert np.array_equal(found[name][1], mask_of(name)), "VOC's own mask must win"
    for name in ("2009_x", "2009_y", "2010_z"):
        assert np.array_equal(found[name][1], SBD_MASK)


@pytest.mark.parametrize("below", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_release_of_sbd(devkit: Path, sbd: Path, below: str) -> None:
    found = augmented(devkit, sbd=str(sbd / below))
    assert list(found) == AUGMENTED
    assert_augmented(found)
    place = sbd / "benchmark_RELEASE" / "dataset"
    assert found["2009_x"][0] == devkit / "JPEGImages" / "2009_x.jpg"
    assert found["2009_y"][0] == place / "img" / "2009_y.jpg"


def test_folder_of_augmented_masks_without_a_list(devkit: Path) -> None:
    add_aug_folder(devkit)
    found = augmented(devkit)
    assert list(found) == AUGMENTED
    assert_augmented(found)


def test_folder_of_augmented_masks_with_its_list(devkit: Path) -> None:
    add_aug_folder(devkit)
    names = ["2010_z", "2007_b", "2007_a", "2009_x", "2009_y"]
    write_list(devkit / "ImageSets" / "Segmentation" / "trainaug.txt", names)
    found = augmented(devkit)
    assert list(found) == names
    assert_augmented(found)


def test_a_list_that_shares_images_with_val_is_noted(devkit: Path) -> None:
    add_aug_folder(devkit)
    write_list(devkit / "ImageSets" / "Segmentation" / "trainaug.txt", ["2009_x", "2008_c"])
    assert any("2008_c" in note for note in survey("voc", root_of(devkit), "trainaug").notes)


def test_sbd_is_no_hindrance_to_the_other_splits(devkit: Path, sbd: Path) -> None:
    assert open_dataset("voc", root_of(devkit), "val", {"sbd": str(sbd)}).names == VAL


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_trainaug(
    devkit: Path, sbd: Path, tmp_path: Path, run_cli: RunCli, workers: int
) -> None:
    code, output, error = run_cli(
        "train", "--data.name", "voc", "--data.root", root_of(devkit),
        "--data.train_split", "trainaug", "--data.options.sbd", sbd, "--data.batch_size", "4",
        "--epochs", "1", *FIT_FLAGS, *model_flags("model"), "--run", tmp_path / "run",
        "--data.workers", workers,
    )  # fmt: skip
    assert code == 0, error
    assert "val mIoU" in output
    saved = (tmp_path / "run" / "metrics.json").read_text()
    assert all(f'"{name}"' in saved for name in CLASSES.names)


def test_all_of_sbd(sbd: Path) -> None:
    dataset = open_sbd(sbd)
    assert len(dataset) == 5
    assert list(check_dataset(dataset, decode_images=True)) == []
    assert dataset.notes == ["5 images; the official split has 11355"]


def test_trainaug_without_sbd_tells_where_to_get_it(devkit: Path, tmp_path: Path) -> None:
    message = one_line(lambda: open_dataset("voc", root_of(devkit), "trainaug"))
    assert "SegmentationClassAug" in message
    assert "data.options.sbd" in message
    options = {"sbd": str(tmp_path / "nowhere")}
    message = one_line(lambda: open_dataset("voc", root_of(devkit), "trainaug", options))
    assert f"no SBD in {tmp_path / 'nowhere'}" in message


def test_a_misspelt_option_is_named(devkit: Path) -> None:
    message = one_line(lambda: open_dataset("voc", root_of(devkit), "trainaug", {"sdb": "x"}))
    assert "'sdb'; did you mean 'sbd'" in message
    message = one_line(lambda: open_images("voc", root_of(devkit), "train", {"sdb": "x"}))
    assert "'sdb'; did you mean 'sbd'" in message


# broken files, through the command line


def mat_file(sbd: Path) -> Path:
    return sbd / "benchmark_RELEASE" / "dataset" / "cls" / "2009_x.mat"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


BROKEN_MAT: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, "not a readable SBD mask"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable SBD mask"),
    "text": (lambda path: path.write_text("words" * 100), "not a readable SBD mask"),
    "no_struct": (lambda path: savemat(path, {"a": 1}), "not a readable SBD mask"),
    "no_field": (lambda path: savemat(path, {"GTcls": {"a": 1}}), "not a readable SBD mask"),
    "cube": (lambda path: write_mat(path, np.zeros((4, 5, 3), np.uint8)), "shape (4, 5, 3)"),
    "fractions": (lambda path: write_mat(path, np.full((10, 20), 0.5)), "float64"),
    "class_id": (lambda path: write_mat(path, np.full((10, 20), 21, np.uint8)), "class id 21"),
    "large_id": (lambda path: write_mat(path, np.full((10, 20), 263, np.uint16)), "263"),
    "negative": (lambda path: write_mat(path, np.full((10, 20), -1, np.int8)), "-1"),
    "size": (lambda path: write_mat(path, SBD_MASK[:, :19]), "is 19x10"),
    "missing": (Path.unlink, "2009_x.mat"),
}


@pytest.mark.parametrize("how", BROKEN_MAT)
def test_a_broken_mat_is_one_line(devkit: Path, sbd: Path, run_cli: RunCli, how: str) -> None:
    damage, words = BROKEN_MAT[how]
    damage(mat_file(sbd))
    code, output, error = run_cli(
        "data", "check", "--data.name", "voc", "--data.root", root_of(devkit),
        "--data.split", "trainaug", "--data.options.sbd", sbd,
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    assert str(mat_file(sbd)) in error
    assert words in error
    assert "trainaug: 5 images, 1 cannot be used" in output


def test_check_names_every_bad_file_and_the_counts(devkit: Path, run_cli: RunCli) -> None:
    (devkit / "SegmentationClass" / "2007_a.png").unlink()
    (devkit / "JPEGImages" / "2007_b.jpg").unlink()
    cut(devkit / "JPEGImages" / "2008_c.jpg")
    write_png(devkit / "SegmentationClass" / "2008_d.png", np.full((1, 9), 21, np.uint8))
    code, output, error = run_cli("data", "check", "--data.name", "voc", "--data.root", devkit)
    assert code == 2
    lines = error.splitlines()
    assert len(lines) == 4
    for line, name in zip(
        lines, ("2007_a.png", "2007_b.jpg", "2008_c.jpg", "2008_d.png"), strict=True
    ):
        assert line.startswith("aicsd: error: ")
        assert name in line
    assert "class id 21" in lines[3]
    assert output.splitlines() == [
        "train: 2 images, 2 cannot be used",
        "train: note: 2 images; the official split has 1464",
        "val: 2 images, 2 cannot be used",
        "val: note: 2 images; the official split has 1449",
    ]


def test_a_sound_tree_of_another_size_is_no_error(devkit: Path, run_cli: RunCli) -> None:
    code, output, error = run_cli("data", "check", "--data.name", "voc", "--data.root", devkit)
    assert (code, error) == (0, "")
    assert "1464" in output


def test_complete_splits_are_not_noted() -> None:
    from aicsd.data.file_dataset import FileDataset, Pair

    pairs = [Pair(Path(f"{i}.jpg"), Path(f"{i}.png")) for i in range(COUNTS["train"])]
    assert FileDataset(pairs, CLASSES, official_count=1464).notes == []
    assert (COUNTS["val"], COUNTS["trainval"], COUNTS["trainaug"]) == (1449, 2913, 10582)


def break_tree(devkit: Path, what: str) -> None:
    lists = devkit / "ImageSets" / "Segmentation"
    if what == "no_devkit":
        (devkit / "JPEGImages").rename(devkit / "Images")
    elif what == "no_list":
        (lists / "train.txt").unlink()
    elif what == "empty_list":
        (lists / "train.txt").write_text("\n")
    elif what == "binary_list":
        (lists / "train.txt").write_bytes(b"\xff\xfe\x80")
    elif what == "no_masks":
        (devkit / "SegmentationClass").rename(devkit / "Elsewhere")
    elif what == "mask_missing":
        (devkit / "SegmentationClass" / "2007_b.png").unlink()
    elif what == "images_missing":
        for name in TRAIN:
            (devkit / "JPEGImages" / f"{name}.jpg").unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no_devkit", ["no folder JPEGImages", "VOCdevkit/VOC2012"]),
        ("no_list", ["no list", "train.txt", "lists there: test, trainval, val"]),
        ("empty_list", ["train.txt lists no image"]),
        ("binary_list", ["train.txt cannot be read"]),
        ("no_masks", ["no folder", "SegmentationClass"]),
        ("mask_missing", ["no file", "SegmentationClass/2007_b.png", "aicsd data check"]),
        ("images_missing", ["no file", "JPEGImages/2007_a.jpg and 1 more files"]),
    ],
)
def test_a_broken_tree_stops_training(
    devkit: Path, tmp_path: Path, run_cli: RunCli, what: str, words: list[str]
) -> None:
    break_tree(devkit, what)
    code, _, error = run_cli(
        "train", "--data.name", "voc", "--data.root", root_of(devkit), "--data.check", "false",
        "--run", tmp_path / "run",
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()
