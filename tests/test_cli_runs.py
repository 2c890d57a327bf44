"""Files of a run, and their use by evaluate and predict."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_runs import MEASURES, METHOD_TERMS, check, result_of
from conftest import CLASS_NAMES, TINY_MODEL, RunCli, write_folder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import NO_REPORT, data_flags, lines, same_weights, train_command, train_lines

from aicsd.data import Classes, open_dataset
from aicsd.evaluation import evaluate
from aicsd.models import ModelConfig, build_model, load_model, save_model
from aicsd.visualization import overlay

# the run folder


def test_run_folder(student: Path) -> None:
    files = {str(path.relative_to(student)) for path in student.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        "config.yaml",
        "metrics.jsonl",
        "metrics.json",
        "model.safetensors",
        "best.safetensors",
        "checkpoints/last.pt",
        "report.html",
        "ics.safetensors",
        "inputs.json",
        "image_counts.safetensors",
    }


def test_metrics_of_every_step(student: Path) -> None:
    steps = train_lines(student)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in steps] == [0, 1, 1, 2, 2, 3]
    for number, line in enumerate(steps):
        progress = number / 6
        assert line["progress"] == pytest.approx(progress, abs=1e-6)
        assert line["lr"] == pytest.approx(0.01 * (1 - progress) ** 0.9)
        assert line["weight/cross_entropy"] == pytest.approx(progress)
        assert line["weight/icsd"] == pytest.approx(7 * progress)
        assert line["weight/pixel_kd"] == pytest.approx(2 * (1 - progress))
        terms = METHOD_TERMS["aicsd"]
        total = sum(line[f"weight/{name}"] * line[f"loss/{name}"] for name in terms)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1


def test_metrics_of_validations(student: Path, teacher: Path) -> None:
    validations = [line for line in lines(student) if "val/miou" in line]
    assert [line["step"] for line in validations] == [2, 4, 6]
    result = result_of(student)
    for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou"):
        assert validations[-1][f"val/{name}"] == result[name]
    assert {
        name.removeprefix("val_iou/"): value
        for name, value in validations[-1].items()
        if name.startswith("val_iou/")
    } == result["per_class_iou"]
    # every fourth epoch, and at the end
    assert [line["step"] for line in lines(teacher) if "val/miou" in line] == [8, 16, 20]


def test_result(student: Path, teacher: Path) -> None:
    result = result_of(student)
    assert set(result) == {*MEASURES, "seconds", "parameters", "teacher"}
    assert list(result["per_class_iou"]) == list(CLASS_NAMES)
    assert result["images"] == 4
    assert result["parameters"] == load_model(student).num_parameters()
    assert result["seconds"] > 0
    of_teacher = result_of(teacher)
    assert result["teacher"] == {name: of_teacher[name] for name in MEASURES}
    assert of_teacher["teacher"] is None


def test_tensorboard_has_the_same_numbers(student: Path) -> None:
    board = EventAccumulator(str(student), size_guidance={"scalars": 0})
    board.Reload()
    wanted: dict[str, list[tuple[int, float]]] = {}
    for line in lines(student):
        for name, value in line.items():
            if name != "step" and value is not None:
                wanted.setdefault(name, []).append((line["step"], value))
    assert set(board.Tags()["scalars"]) == set(wanted)
    for name, values in wanted.items():
        events = board.Scalars(name)
        assert [event.step for event in events] == [step for step, _ in values]
        assert [event.value for event in events] == pytest.approx([v for _, v in values], rel=1e-6)


def test_best_model_is_the_best(teacher: Path, root: Path) -> None:
    best = max(line["val/miou"] for line in lines(teacher) if "val/miou" in line)
    data = open_dataset("folder", str(root), "val")
    measured = evaluate(load_model(teacher / "best.safetensors"), data)
    assert measured.miou == pytest.approx(best)


def test_config_repeats_the_run(student: Path, tmp_path: Path, run_cli: RunCli) -> None:
    again = tmp_path / "again"
    check(run_cli("distill", "--config", student / "config.yaml", "--run", again))
    assert same_weights(student, again)
    for line, other in zip(train_lines(student), train_lines(again), strict=True):
        assert line["loss"] == other["loss"]
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (student, again))
    assert first.pop("run") != second.pop("run")
    assert first == second
    # complete: nothing is left to the defaults of another version
    assert first["terms"]["icsd"]["weight"] == 7
    assert "temperature" in first["terms"]["pixel_kd"]
    assert first["seed"] == 5
    assert first["optimizer"]["momentum"] == 0.9


def test_log_every_and_val_at_the_end(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    command = train_command(root, run, "--epochs", "4", "--log_every", "3", "--val_every", "0")
    check(run_cli(*command, *NO_REPORT))
    assert [line["step"] for line in train_lines(run)] == [3, 6, 8]
    assert [line["step"] for line in lines(run) if "val/miou" in line] == [8]


def test_no_checkpoint_temporary_is_left(teacher: Path, student: Path) -> None:
    assert not [path for run in (teacher, student) for path in run.rglob("*.tmp*")]


# evaluate


def test_evaluate(student: Path, root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    of_run, of_file = tmp_path / "deep" / "run.json", tmp_path / "file.json"
    printed = check(run_cli("evaluate", student, *data_flags(root), "--json", of_run))
    result = json.loads(of_run.read_text())
    assert set(result) == set(MEASURES)
    assert result == {name: result_of(student)[name] for name in MEASURES}
    for name in CLASS_NAMES:
        assert f"{100 * result['per_class_iou'][name]:.2f}" in printed
    assert f"mIoU {100 * result['miou']:.2f}" in printed
    assert "(4 images)" in printed
    file = student / "model.safetensors"
    flags = ["--batch_size", "1", "--workers", "1", "--device", "cpu"]
    check(run_cli("evaluate", file, *data_flags(root), "--json", of_file, *flags))
    assert json.loads(of_file.read_text()) == result


def test_evaluate_another_split(student: Path, root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    flags = [*data_flags(root), "--data.split", "train", "--json", tmp_path / "train.json"]
    check(run_cli("evaluate", student, *flags))
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["images"] == 8
    wanted = evaluate(load_model(student), open_dataset("folder", str(root), "train"))
    assert result == wanted.to_dict()


def test_class_that_occurs_nowhere_is_null(tmp_path: Path, run_cli: RunCli) -> None:
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2})
    for mask in (root / "masks" / "val").iterdir():
        ids = np.array(Image.open(mask))
        ids[ids > 0] = 0
        Image.fromarray(ids).save(mask)
    model = build_model(ModelConfig(**TINY_MODEL), Classes(CLASS_NAMES, ((0, 0, 0),) * 3))
    with torch.no_grad():
        model.net.get_parameter("classifier.bias").copy_(torch.tensor([100.0, 0.0, 0.0]))
    save_model(model, tmp_path / "model.safetensors")
    flags = [*data_flags(root), "--json", tmp_path / "out.json"]
    printed = check(run_cli("evaluate", tmp_path / "model.safetensors", *flags))
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["per_class_iou"] == {"ground": 1.0, "disc": None, "bar": None}
    assert result["miou"] == 1.0
    assert re.search(r"disc +- +- *\n", printed)


# predict


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files and a folder of two, JPEG and PNG, wide and high, and a file to leave out."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    rng = np.random.default_rng(3)
    for name, (width, height) in {
        "wide.jpg": (90, 50),
        "high.png": (37, 81),
        "more/high.JPG": (50, 70),
        "more/wide.png": (101, 64),
    }.items():
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        path = folder / name.replace("more/", "more/in_")
        Image.fromarray(noise).save(path)
    (folder / "more" / "notes.txt").write_text("not an image")
    return folder


def test_predict(teacher: Path, pictures: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "new" / "out"
    files = [pictures / "wide.jpg", pictures / "high.png"]
    printed = check(run_cli("predict", teacher, *files, pictures / "more", "--out", out))
    assert "4 images" in printed
    assert str(out) in printed
    images = [*files, pictures / "more" / "in_high.JPG", pictures / "more" / "in_wide.png"]
    stems = [path.stem for path in images]
    written = {path.name for path in out.iterdir()}
    assert written == {f"{stem}{end}.png" for stem in stems for end in ("", "_overlay")}
    model = load_model(teacher)
    for path in images:
        with Image.open(path) as original, Image.open(out / f"{path.stem}.png") as ids:
            assert ids.mode == "P"
            assert ids.size == original.size
            predicted = model.predict(path)
            assert np.array_equal(np.asarray(ids), predicted)
            palette = np.array(ids.getpalette()).reshape(-1, 3)
            assert [tuple(color) for color in palette[:3].tolist()] == list(model.classes.palette)
            pixels = np.asarray(original.convert("RGB"))
        with Image.open(out / f"{path.stem}_overlay.png") as picture:
            assert picture.mode == "RGB"
            shown = np.asarray(picture)[: len(predicted)].astype(int)  # without the legend
            wanted = overlay(pixels, predicted, model.classes.palette).astype(int)
            # PIL and OpenCV decode a JPEG with slightly different rounding
            assert np.abs(shown - wanted).max() <= (0 if path.suffix == ".png" else 4)


def test_predict_opacity(teacher: Path, pictures: Path, tmp_path: Path, run_cli: RunCli) -> None:
    image = pictures / "high.png"
    for opacity in ("0", "1"):
        out = tmp_path / opacity
        check(run_cli("predict", teacher, image, "--out", out, "--opacity", opacity))
    original = np.asarray(Image.open(image))
    colors = np.asarray(Image.open(tmp_path / "1" / "high.png").convert("RGB"))
    for opacity, wanted in (("0", original), ("1", colors)):
        shown = np.asarray(Image.open(tmp_path / opacity / "high_overlay.png"))
        assert np.array_equal(shown[: len(wanted)], wanted)  # without the legend


def test_predict_uses_the_named_model(
    teacher: Path, pictures: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    best = teacher / "best.safetensors"
    check(run_cli("predict", best, pictures / "high.png", "--out", tmp_path))
    ids = np.asarray(Image.open(tmp_path / "high.png"))
    assert np.array_equal(ids, load_model(best).predict(pictures / "high.png"))


def test_run_folder_can_be_moved(student: Path, tmp_path: Path, root: Path) -> None:
    shutil.copytree(student, tmp_path / "moved")
    image = root / "images" / "val" / "001.png"
    moved, original = load_model(tmp_path / "moved"), load_model(student)
    assert np.array_equal(moved.predict(image), original.predict(image))
    assert math.isclose(
        evaluate(moved, open_dataset("folder", str(root), "val")).miou, result_of(student)["miou"]
    )
