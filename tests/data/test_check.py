"""Remarks of a check on labels that are valid, and their effect on a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, write_folder
from PIL import Image
from tiny_runs import NO_REPORT, train_command

from aicsd.data import Classes, Sample, SegDataset, Splits, check_splits, survey, survey_dataset
from aicsd.data.overview import COLUMNS, label_sheet, label_table
from aicsd.errors import UserError

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (200, 0, 0), (0, 200, 0)))


class Masks(SegDataset):
    """A dataset in memory."""

    def __init__(self, *masks: np.ndarray, classes: Classes = CLASSES) -> None:
        self.masks, self.classes = masks, classes
        self.names = [f"mask {number}" for number in range(len(masks))]

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, index: int) -> Sample:
        mask = self.masks[index]
        return Sample(np.full((*mask.shape[:2], 3), 90, np.uint8), mask)


def filled(*ids: int, size: tuple[int, int] = (8, 10)) -> np.ndarray:
    return np.resize(np.array(ids, np.uint8), size)


def test_counts() -> None:
    found = survey_dataset(Masks(filled(0, 1), filled(0, 255, 255, 0), filled(2, size=(4, 5))))
    assert found.images == 3
    assert (found.pixels, found.ignored, found.present) == ((80, 40, 20), 40, (2, 1, 1))
    assert dict(found.sizes) == {(8, 10): 2, (4, 5): 1}
    assert (found.problems, found.notes, found.refusals) == ([], [], ())
    table = "\n".join(label_table(found))
    assert "3 usable images, 10x8 (2), 5x4 (1)" in table
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["a", "44.44", "%", "2"],
        ["b", "22.22", "%", "1"],
        ["c", "11.11", "%", "1"],
        ["(ignored)", "22.22", "%"],
    ]


@pytest.mark.parametrize(
    ("ids", "notes", "refusal"),
    [
        ((0, 1, 2), [], None),
        ((0, 2), ["no pixel of class 'b'"], None),
        ((1,), ["no pixel of class 'a', 'c'"], None),
        ((0, 255), ["no pixel of class 'b', 'c'"], None),
        (
            (1, 2),
            ["no pixel of class 'a' (class ids begin at 0; do those of these masks begin at 1?)"],
            None,
        ),
        ((255,), [], "every pixel of the masks is ignored (255)"),
    ],
)
def test_what_is_odd_and_what_cannot_be_meant(
    ids: tuple[int, ...], notes: list[str], refusal: str | None
) -> None:
    found = survey_dataset(Masks(filled(*ids)))
    assert found.notes == notes
    assert [text.startswith(str(refusal)) for text in found.refusals] == [True] * bool(refusal)


def test_a_class_that_is_everywhere_ignored() -> None:
    two = Classes(("ground", "object"), CLASSES.palette[:2])
    (refusal,) = survey_dataset(Masks(filled(0, 255), classes=two)).refusals
    assert "masks hold 0 (ground) and 255 alone" in refusal
    assert "class 'object' has no pixel" in refusal
    assert survey_dataset(Masks(filled(0), classes=two)).refusals == ()
    assert survey_dataset(Masks(filled(0, 1, 255), classes=two)).refusals == ()


def test_one_class_is_nothing_to_learn() -> None:
    one = Classes(("crack",), CLASSES.palette[:1])
    (refusal,) = survey_dataset(Masks(filled(0, 255), classes=one)).refusals
    assert "the data has one class, 'crack', so that every prediction is right" in refusal


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (filled(0, 3), "sample 1 ('mask 1'): class id 3 is out of range; there are 3 classes"),
        (filled(0, 1).astype(np.int64), "the mask is int64 of shape (8, 10); it must be uint8"),
        (filled(0, 1)[..., None], "the mask is uint8 of shape (8, 10, 1)"),
    ],
)
def test_data_in_memory_is_checked(mask: np.ndarray, words: str) -> None:
    splits = Splits(Masks(filled(0, 1, 2), mask, mask), Masks(filled(0, 1, 2)))
    with pytest.raises(UserError) as caught:
        check_splits(splits)
    assert words in str(caught.value)
    assert "and 1 more problem " in str(caught.value)
    assert check_splits(Splits(splits.val, Masks(filled(0, 1)))) == ["val: no pixel of class 'c'"]


def test_a_sheet_shows_images_of_the_whole_split() -> None:
    masks = [filled(1, size=(60, 20)), *[filled(2, size=(20, 60))] * 29]
    sheet = label_sheet(Masks(*masks))
    assert sheet[: 4 * 240].shape == (4 * 240, COLUMNS * 240, 3)
    assert sheet[100, 30].tolist() == [145, 45, 45]  # half of 90 and of class b
    assert sheet[30, 300].tolist() == [45, 145, 45]
    assert sheet[200, 300].tolist() == [255, 255, 255]
    legend = sheet[4 * 240 :]
    assert len(legend) < 60
    assert all((legend == color).all(axis=2).sum() > 200 for color in CLASSES.palette)
    assert label_sheet(Masks(filled(0)))[:240].shape == (240, 240, 3)


# through the command line


def binary(root: Path) -> Path:
    """A folder of two classes whose masks are black and white."""
    write_folder(root)
    (root / "classes.txt").write_text("ground\nobject\n")
    for path in root.glob("masks/*/*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where((mask > 0) & (mask < 255), 255, 0).astype(np.uint8)).save(path)
    return root


def test_black_and_white_masks(tmp_path: Path, run_cli: RunCli) -> None:
    root = binary(tmp_path / "data")
    code, output, error = run_cli("data", "check", "--data.root", root)
    assert code == 2
    assert "train: 8 images, 0 cannot be used" in output
    assert error.splitlines()[0].startswith("aicsd: error: train: the masks hold 0 (ground) and")
    offer = "--data.options '{mask_values: {0: ground, 255: object}}'"
    assert error.count(offer) == 2
    code, _, error = run_cli(*train_command(root, tmp_path / "run", "--epochs", 1))
    assert code == 2
    assert error.count("\n") == 1
    assert offer in error
    assert not (tmp_path / "run").exists()
    options = ("--data.options", "{mask_values: {0: ground, 255: object}}")
    assert run_cli("data", "check", "--data.root", root, *options)[0] == 0


def test_a_training_says_what_is_odd(tiny_folder: Path, tmp_path: Path, run_cli: RunCli) -> None:
    with (tiny_folder / "classes.txt").open("a") as file:
        file.write("post\n")
    spare = tiny_folder / "masks" / "val" / "spare.png"
    spare.write_bytes((spare.parent / "000.png").read_bytes())
    command = train_command(tiny_folder, tmp_path / "run", "--epochs", 1, *NO_REPORT)
    code, _, error = run_cli(*command)
    assert code == 0
    assert "run: train: no pixel of class 'post'\n" in error
    assert f"run: val: 1 mask has no image and is left out: {spare}\n" in error


def test_many_problems_are_counted(tmp_path: Path, run_cli: RunCli) -> None:
    root = write_folder(tmp_path / "data", {"train": 105, "val": 1})
    for path in (root / "masks" / "train").iterdir():
        path.write_bytes(b"")
    code, output, error = run_cli("data", "check", "--data.root", root)
    assert code == 2
    lines = error.splitlines()
    assert len(lines) == 101
    assert lines[-1] == "aicsd: error: and 5 more"
    assert "train: 105 images, 105 cannot be used" in output


def test_the_sheet_of_a_check(tiny_folder: Path, tmp_path: Path, run_cli: RunCli) -> None:
    sheet = tmp_path / "sheets" / "train.png"
    code, output, _ = run_cli("data", "check", "--data.root", tiny_folder, "--sheet", sheet)
    assert code == 0
    assert f"{sheet}: images of train" in output
    with Image.open(sheet) as picture:
        width, height = picture.size
    assert width == 6 * 240
    assert 2 * 240 < height < 2 * 240 + 60  # the legend


def test_a_split_without_masks(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"unlabelled": 2, "train": 1})
    found = survey("folder", str(root), "unlabelled")
    assert (found.images, found.problems, found.refusals) == (2, [], ())
    assert label_table(found) == ["  2 usable images, 64x48 (2)", "  no labels"]
