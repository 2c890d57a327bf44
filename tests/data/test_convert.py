"""Contract of every conversion: recognition, one line, whole or absent, the command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_MODEL, RunCli, one_line
from convert_sources import HEIGHT, WIDTH, box_points, coco_source, inside, names_in, read_ids
from PIL import Image
from tiny_runs import NO_REPORT

from aicsd.data.convert import FORMATS, convert
from aicsd.data.convert.tree import Tree

LABELMEFACADE = Path(__file__).parents[3] / "shared" / "data" / "labelmefacade"


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
                             "--accelerator", "cpu", "--run", "run", *NO_REPORT)  # fmt: skip
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
