"""Every command and every Python block of the README runs, on tiny data with tiny networks."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL, RunCli, write_folder
from PIL import Image
from released_deeplab import random_deeplab
from tiny_runs import NO_REPORT

import aicsd
from aicsd.cli import find_command
from aicsd.cli.parser import parse
from aicsd.released import translate

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TINY_DATA = {"batch_size": 4, "workers": 0, "augment": {"crop": 48}}
TINY_FLAGS = ["--epochs", "1", "--data.batch_size", "4", "--data.workers", "0",
              "--data.augment.crop", "48"]  # fmt: skip
QUICK_FLAGS = {
    "train": [*TINY_FLAGS, "--model.weights", "none"]
    + [part for key, value in TINY_MODEL.items() for part in (f"--model.{key}", str(value))],
    "distill": [*TINY_FLAGS, "--student.weights", "none"]
    + [part for key, value in TINY_MODEL.items() for part in (f"--student.{key}", str(value))],
}


def flags_without_report(command: list[str]) -> list[str]:
    """The report of the pages is that of ``aicsd report``."""
    quick = QUICK_FLAGS.get(command[0], [])
    return [*quick, *NO_REPORT] if quick else []


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def aicsd_commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks("bash", page) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("aicsd ")]


def prepare(place: Path) -> Path:
    write_folder(place / "my_data")
    write_annotations(place / "my_data", place / "annotations")
    return place


def write_annotations(folder: Path, out: Path) -> None:
    """The same images as CVAT exports them: masks in colour, a list of the images of each split."""
    colors = {name: (40 * number, 10, 90) for number, name in enumerate(CLASS_NAMES)}
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / part).mkdir(parents=True)
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in colors.items()]
    (out / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    for split in ("train", "val"):
        names = []
        for image in sorted((folder / "images" / split).iterdir()):
            names.append(f"{split}_{image.stem}")
            shutil.copy(image, out / "JPEGImages" / f"{names[-1]}.png")
            mask = np.asarray(Image.open(folder / "masks" / split / image.name))
            rgb = np.zeros((*mask.shape, 3), np.uint8)
            for number, color in enumerate(colors.values()):
                rgb[mask == number] = color
            Image.fromarray(rgb).save(out / "SegmentationClass" / f"{names[-1]}.png")
        (out / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the README has it, with the runs that its commands make."""
    place = prepare(tmp_path_factory.mktemp("readme"))
    (place / "pretrained").mkdir()
    state = {"state_dict": random_deeplab("resnet18").state_dict()}
    torch.save(state, place / "pretrained" / "NAME.pth.tar")
    Image.open(place / "my_data" / "images" / "val" / "000.png").save(place / "photo.jpg")
    return place


@pytest.mark.slow
def test_commands(workplace: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli) -> None:
    monkeypatch.chdir(workplace)
    shutil.rmtree("my_data")  # the first command makes it
    commands = aicsd_commands(README)
    assert [command[0] for command in commands] == [
        "data",
        "data",
        "train",
        "distill",
        "distill",
        "report",
        "predict",
        "export",
    ]
    for command in commands:
        code, _, error = run_cli(*command, *flags_without_report(command))
        assert code == 0, (command, error)
    assert (workplace / "report.html").is_file()
    assert (workplace / "model.onnx").is_file()
    names = {path.name for path in (workplace / "predictions").iterdir()}
    assert names == {f"val_{n:03}{end}.png" for n in range(4) for end in ("", "_overlay")}
    code, _, error = run_cli("distill", "--run", "runs/aicsd", "--resume")
    assert code == 0, error


@pytest.mark.slow
def test_the_guide_to_own_data(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(prepare(tmp_path / "guide"))
    commands = aicsd_commands((REPOSITORY / "docs" / "getting-started.md").read_text())
    assert [command[0] for command in commands] == [
        "data",
        "init",
        "train",
        "distill",
        "distill",
        "evaluate",
        "report",
        "predict",
        "export",
        "predict",
    ]
    for command in commands:
        exported = workplace / "model.onnx"
        if command in aicsd_commands(README) and command[0] == "export" and exported.is_file():
            shutil.copy(exported, command[-1])  # what the README's same command has made is slow
            continue
        code, _, error = run_cli(*command, *flags_without_report(command))
        assert code == 0, (command, error)
    assert Path("report.html").is_file()
    for out in ("predictions", "predictions_onnx"):
        assert len(list(Path(out).glob("*_overlay.png"))) == 4


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", "".join(blocks("bash"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
    block: str,
) -> None:
    monkeypatch.chdir(workplace)
    if not Path("runs/teacher").exists():
        data = {"name": "folder", "root": "my_data", **TINY_DATA}
        aicsd.train(model=TINY_MODEL, data=data, epochs=1, run="runs/teacher")
    if "model.onnx" in block and not Path("model.onnx").exists():
        pytest.importorskip("onnxruntime")
        code, _, error = run_cli("export", "runs/teacher", "-o", "model.onnx")
        assert code == 0, error
    distill = aicsd.distill

    def quick(student: str, data: str, **options: Any) -> aicsd.Run:
        assert student == "mobilenetv2_050"
        return distill(
            student=TINY_MODEL,
            data={"name": "folder", "root": data, **TINY_DATA},
            epochs=1,
            **options,
        )

    monkeypatch.setattr(aicsd, "distill", quick)
    names: dict[str, Any] = {
        "ce": torch.tensor(1.0),
        "logits": torch.randn(2, 3, 8, 8),
        "mask": torch.zeros(2, 8, 8, dtype=torch.int64),
        "student_logits": torch.randn(2, 3, 8, 8, requires_grad=True),
        "teacher_logits": torch.randn(2, 3, 8, 8),
    }
    exec(compile(block, "README.md", "exec"), names)
    if "class_ids" in names:
        assert names["class_ids"].shape == (48, 64)
    if "loss" in names:
        names["loss"].backward()
        assert names["student_logits"].grad is not None


def test_the_published_commands(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_released_commands.py runs such a command to its end."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("AICSD_DATA", str(workplace))
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    published = [shlex.split(line) for line in lines if line.startswith("python train_kd.py")]
    methods = []
    for _, script, *arguments in published:
        command, _ = translate(script, arguments)
        _, found, rest = find_command(command)
        methods.append(parse(found, rest)["method"])
    assert methods == ["icsd", "aicsd"]
