"""What every command does, from end to end: train, distill, evaluate, predict, and their help."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import CLASS_NAMES, TINY_MODEL, write_folder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    aicsd,
    data_flags,
    distill_command,
    lines,
    model_flags,
    same_weights,
    train_command,
    train_lines,
    weights,
)
from torch import Tensor, nn

import aicsd as package
from aicsd.cli import find_command, main
from aicsd.data import Classes, open_dataset
from aicsd.data.batches import plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.evaluation import evaluate
from aicsd.models import ModelConfig, Segmenter, build_model, load_model, resize, save_model
from aicsd.runs import flatten
from aicsd.settings import leaves
from aicsd.visualization import overlay

RunCli = Callable[..., tuple[int, str, str]]
METHOD_TERMS = {
    "none": {"cross_entropy"},
    "kd": {"cross_entropy", "pixel_kd"},
    "icsd": {"cross_entropy", "icsd"},
    "aicsd": {"cross_entropy", "icsd", "pixel_kd"},
    "ad": {"cross_entropy", "attention"},
    "sp": {"cross_entropy", "pairwise"},
    "ickd": {"cross_entropy", "correlation"},
}
MEASURES = (
    "miou", "pixel_accuracy", "class_accuracy", "fwiou", "per_class_iou", "per_class_accuracy",
    "images", "confusion",
)  # fmt: skip
LEARN = ("--optimizer.name", "adamw", "--optimizer.lr", "0.01", "--optimizer.head_lr_factor", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def root(place: Path) -> Path:
    return write_folder(place / "data")


@pytest.fixture(scope="module")
def teacher(place: Path, root: Path) -> Path:
    """A run of 20 steps, validated after epochs 4, 8 and 10."""
    run = place / "teacher"
    aicsd(*train_command(root, run, "--epochs", "10", "--val_every", "4", *LEARN))
    return run


@pytest.fixture(scope="module")
def student(place: Path, root: Path, teacher: Path) -> Path:
    """AICSD with settings that are not the defaults; 6 steps."""
    run = place / "student"
    options = ["--epochs", "3", "--seed", "5", "--terms.icsd.weight", "7",
               "--terms.pixel_kd.weight", "2", "--student.dropout", "0.3",
               "--data.augment.jitter", "0.4", *LEARN]  # fmt: skip
    aicsd(*distill_command(root, teacher, run, *options))
    return run


@pytest.fixture(scope="module")
def baseline(place: Path, root: Path) -> Path:
    """One epoch of plain training with the defaults; 2 steps."""
    run = place / "baseline"
    aicsd(*train_command(root, run, "--epochs", "1"))
    return run


def check(result: tuple[int, str, str]) -> str:
    code, output, error = result
    assert code == 0, error
    return output


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return result


def checkpoint_of(run: Path) -> dict[str, Any]:
    states: dict[str, Any] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return states


# help and configs


@pytest.mark.parametrize("command", ["train", "distill"])
def test_help_explains_every_key_of_the_config(run_cli: RunCli, command: str) -> None:
    keys = flatten(yaml.safe_load(check(run_cli(command, "--print_config"))))
    help_text = check(run_cli(command, "--help_all"))
    assert len(keys) > 35
    for key in keys:
        assert explanation(f"--{key}", help_text), f"{key} is not explained"


@pytest.mark.parametrize("command", ["evaluate", "predict", "data check"])
def test_help_explains_every_argument(run_cli: RunCli, command: str) -> None:
    help_text = check(run_cli(*command.split(), "--help"))
    keys = [key for key, _ in leaves(find_command(command.split())[1].target)]
    assert len(keys) > 3
    for key in keys:
        positional = f"--{key}" not in help_text
        assert explanation(key if positional else f"--{key}", help_text), f"{key}: no explanation"


def explanation(name: str, help_text: str) -> str:
    """The words behind ``name`` in the list of options, without type and default."""
    entry = re.search(
        rf"^  {re.escape(name)}(?: [^\n]*?)?(?:\n|  )(.*?)(?=^  \S|^\S|^\n|\Z)",
        help_text, re.DOTALL | re.MULTILINE,
    )  # fmt: skip
    words = "" if entry is None else " ".join(entry.group(1).split())
    return re.sub(r"\((?:default: .*|required)\)$", "", words).strip()


def test_explanation_sees_what_is_missing() -> None:
    text = "  --a A  word (required)\n  --b B   (default: 3)\n  --c C\n        more\n"
    assert [explanation(f"--{key}", text) for key in "abcd"] == ["word", "", "more", ""]


@pytest.mark.parametrize("command", ["", "train", "distill", "evaluate", "predict", "data"])
def test_help_names_the_purpose(run_cli: RunCli, command: str) -> None:
    text = check(run_cli(*command.split(), "--help"))
    assert text.startswith("usage: aicsd")
    if not command:
        for name in ("train", "distill", "evaluate", "predict", "data"):
            assert re.search(rf"^    {name} +\w+", text, re.MULTILINE)


def test_version(run_cli: RunCli) -> None:
    assert check(run_cli("--version")).strip() == f"aicsd {package.__version__}"


def test_console_script() -> None:
    """What pip installs as ``aicsd``; test_cli_errors.py runs ``python -m aicsd``."""
    (script,) = entry_points(group="console_scripts", name="aicsd")
    assert script.load() is main


@pytest.mark.parametrize("command", ["train", "distill"])
@pytest.mark.parametrize("kind", ["defaults", "changed"])
def test_printed_config_is_accepted(
    run_cli: RunCli, tmp_path: Path, command: str, kind: str
) -> None:
    flags = [] if kind == "defaults" else [
        "--run", "there", "--optimizer.nesterov", "true", "--data.options", "{size: 96}",
        "--data.augment.scale_min", "1e-1", "--epochs", "7",
    ]  # fmt: skip
    if kind == "changed" and command == "distill":
        flags += ["--terms.icsd.weight", "3", "--terms.icsd.temperature", "2"]
    printed = check(run_cli(command, *flags, "--print_config"))
    (tmp_path / "config.yaml").write_text(printed)
    again = check(run_cli(command, "--config", tmp_path / "config.yaml", "--print_config"))
    assert again == printed
    values = flatten(yaml.safe_load(printed))
    if kind == "changed":
        assert (values["optimizer.nesterov"], values["data.options.size"]) == (True, 96)
        assert (values["data.augment.scale_min"], values["epochs"]) == (0.1, 7)
        assert values.get("terms.icsd.weight", 3) == 3
        assert values.get("terms.icsd.temperature", 2) == 2


def test_term_flags_change_single_keys_of_the_config_file(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "terms: {icsd: {weight: 50, schedule: falling}, pixel_kd: {weight: 2}}\n"
    )
    flags = ["--config", tmp_path / "config.yaml", "--terms.icsd.temperature=2",
             "--terms.icsd.weight", "1e-1", "--terms.pixel_kd", "{temperature: 3}"]  # fmt: skip
    values = yaml.safe_load(check(run_cli("distill", *flags, "--print_config")))
    assert values["terms"] == {
        "icsd": {"weight": 0.1, "schedule": "falling", "temperature": 2},
        "pixel_kd": {"temperature": 3},
    }


def test_flags_override_the_config_file(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 7\noptimizer: {lr: 0.5, clip: 2.0}\n")
    flags = ["--config", tmp_path / "config.yaml", "--optimizer.lr", "0.25"]
    values = yaml.safe_load(check(run_cli("train", *flags, "--print_config")))
    assert values["epochs"] == 7
    assert values["optimizer"]["lr"] == 0.25
    assert values["optimizer"]["clip"] == 2.0
    assert values["optimizer"]["momentum"] == 0.9


# the run folder


def test_run_folder(student: Path) -> None:
    files = {str(path.relative_to(student)) for path in student.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        "config.yaml", "metrics.jsonl", "metrics.json", "model.safetensors",
        "best.safetensors", "checkpoints/last.pt", "report.html", "ics.safetensors",
        "inputs.json", "image_counts.safetensors",
    }  # fmt: skip


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
    check(run_cli(*command))
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
def pictures(place: Path) -> Path:
    """Two files and a folder of two, JPEG and PNG, wide and high, and a file to leave out."""
    folder = place / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name, (width, height) in {
        "wide.jpg": (90, 50), "high.png": (37, 81), "more/high.JPG": (50, 70),
        "more/wide.png": (101, 64),
    }.items():  # fmt: skip
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
            shown = np.asarray(picture).astype(int)
            wanted = overlay(pixels, predicted, model.classes.palette).astype(int)
            # PIL and OpenCV decode a JPEG with slightly different rounding
            assert np.abs(shown - wanted).max() <= (0 if path.suffix == ".png" else 4)


def test_predict_opacity(teacher: Path, pictures: Path, tmp_path: Path, run_cli: RunCli) -> None:
    image = pictures / "high.png"
    for opacity in ("0", "1"):
        out = tmp_path / opacity
        check(run_cli("predict", teacher, image, "--out", out, "--opacity", opacity))
    original = np.asarray(Image.open(image))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "0" / "high_overlay.png")), original)
    colors = np.asarray(Image.open(tmp_path / "1" / "high.png").convert("RGB"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "1" / "high_overlay.png")), colors)


def test_predict_uses_the_named_model(
    teacher: Path, pictures: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    best = teacher / "best.safetensors"
    check(run_cli("predict", best, pictures / "high.png", "--out", tmp_path))
    ids = np.asarray(Image.open(tmp_path / "high.png"))
    assert np.array_equal(ids, load_model(best).predict(pictures / "high.png"))


# methods and terms


@pytest.mark.parametrize("method", METHOD_TERMS)
def test_every_method_runs(
    root: Path, teacher: Path, tmp_path: Path, run_cli: RunCli, method: str
) -> None:
    run = tmp_path / method
    command = distill_command(root, teacher, run, "--method", method, "--epochs", "1")
    if method == "none":
        place = command.index("--teacher")
        del command[place : place + 2]
    check(run_cli(*command))
    terms = METHOD_TERMS[method]
    for line in train_lines(run):
        found = {name.removeprefix("loss/") for name in line if name.startswith("loss/")}
        assert found == terms
        total = sum(line[f"weight/{name}"] * line[f"loss/{name}"] for name in terms)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert (result_of(run)["teacher"] is None) == (method == "none")
    assert set(yaml.safe_load((run / "config.yaml").read_text())["terms"]) == terms


def test_train_is_the_method_none(
    baseline: Path, root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "none"
    command = distill_command(root, "unused", run, "--method", "none", "--epochs", "1")
    check(run_cli(*command))
    assert same_weights(baseline, run)


def test_term_overrides(root: Path, teacher: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    flags = [
        "--epochs", "1", "--method", "kd", "--terms.pixel_kd.weight", "0.5",
        "--terms.pixel_kd.schedule", "falling", "--terms.icsd.weight", "4",
        "--terms.cross_entropy.resolution", "native",
    ]  # fmt: skip
    check(run_cli(*distill_command(root, teacher, run, *flags)))
    first, second = train_lines(run)
    weight = {name: (first[f"weight/{name}"], second[f"weight/{name}"])
              for name in METHOD_TERMS["aicsd"]}  # fmt: skip
    assert weight == {"cross_entropy": (1, 1), "pixel_kd": (0.5, 0.25), "icsd": (4, 4)}
    terms = yaml.safe_load((run / "config.yaml").read_text())["terms"]
    assert terms["cross_entropy"]["resolution"] == "native"
    assert terms["icsd"]["weight"] == 4


def test_recipe_file(root: Path, teacher: Path, tmp_path: Path, run_cli: RunCli) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("terms:\n  icsd: {weight: 9, schedule: falling}\n")
    run = tmp_path / "run"
    check(run_cli(*distill_command(root, teacher, run, "--method", recipe, "--epochs", "1")))
    first, second = train_lines(run)
    assert (first["weight/icsd"], second["weight/icsd"]) == (9, 4.5)
    assert "loss/cross_entropy" not in first


def test_teacher_with_more_classes_in_another_order(
    root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    names = ("bar", "post", "ground", "disc")
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_MODEL), Classes(names, ((1, 2, 3),) * 4))
    save_model(model, tmp_path / "big.safetensors")
    reduced = build_model(ModelConfig(**TINY_MODEL), Classes(CLASS_NAMES, ((1, 2, 3),) * 3))
    state = model.net.state_dict()
    order = [names.index(name) for name in CLASS_NAMES]
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = state[key][order]
    reduced.net.load_state_dict(state)
    save_model(reduced, tmp_path / "small.safetensors")
    for name in ("big", "small"):
        file = tmp_path / f"{name}.safetensors"
        check(run_cli(*distill_command(root, file, tmp_path / name, "--epochs", "1")))
    big, small = (train_lines(tmp_path / name) for name in ("big", "small"))
    assert big[0]["loss"] == pytest.approx(small[0]["loss"], rel=1e-5)
    assert big[1]["loss"] == pytest.approx(small[1]["loss"], rel=1e-2)
    assert result_of(tmp_path / "big")["teacher"] == result_of(tmp_path / "small")["teacher"]


# optimizer and data settings


@pytest.mark.parametrize(
    "flags",
    [
        "--seed 1",
        "--optimizer.name adamw",
        "--optimizer.lr 0.001",
        "--optimizer.head_lr_factor 2",
        "--optimizer.weight_decay 0.1",
        "--optimizer.momentum 0.5",
        "--optimizer.nesterov true",
        "--optimizer.power 0",
        "--optimizer.clip 0.01",
        "--optimizer.accumulate 2",
        "--optimizer.ema 0.5",
        "--data.batch_size 2",
        "--data.augment.scale_min 1",
        "--data.augment.scale_max 1",
        "--data.augment.flip 0",
        "--data.augment.blur 0",
        "--data.augment.jitter 1",
        "--model.dropout 0",
        "--precision bf16-mixed",
    ],
    ids=lambda flags: str(flags).split()[0].removeprefix("--"),
)
def test_every_setting_changes_the_result(
    baseline: Path, root: Path, tmp_path: Path, run_cli: RunCli, flags: str
) -> None:
    run = tmp_path / "run"
    command = train_command(root, run, "--epochs", "1", "--val_every", "0", *flags.split())
    check(run_cli(*command))
    assert not same_weights(baseline, run)


@pytest.mark.parametrize(
    "flags", ["--save_every 1", "--log_every 7", "--val_every 0", "--data.check false"]
)
def test_bookkeeping_does_not_change_the_result(
    baseline: Path, root: Path, tmp_path: Path, run_cli: RunCli, flags: str
) -> None:
    run = tmp_path / "run"
    check(run_cli(*train_command(root, run, "--epochs", "1", *flags.split())))
    assert same_weights(baseline, run)


def test_adamw_is_adamw(teacher: Path, baseline: Path) -> None:
    assert "exp_avg" in next(iter(checkpoint_of(teacher)["optimizer"]["state"].values()))
    assert "momentum_buffer" in next(iter(checkpoint_of(baseline)["optimizer"]["state"].values()))


def test_head_and_backbone_rates(baseline: Path) -> None:
    groups = checkpoint_of(baseline)["optimizer"]["param_groups"]
    assert [group["base_lr"] for group in groups] == pytest.approx([0.007, 0.07])


def test_accumulated_steps_are_counted(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """3 epochs of 4 batches make 6 steps of 2; the checkpoint and the log agree."""
    run = tmp_path / "run"
    flags = ["--data.batch_size", "2", "--optimizer.accumulate", "2", "--epochs", "3"]
    check(run_cli(*train_command(root, run, *flags)))
    assert [line["step"] for line in train_lines(run)] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in train_lines(run)] == [0, 1, 1, 2, 2, 3]
    assert checkpoint_of(run)["progress"]["step"] == 6


PLAIN_SGD = (
    "--optimizer.momentum", "0", "--optimizer.weight_decay", "0", "--optimizer.power", "0",
    "--optimizer.head_lr_factor", "1", "--model.dropout", "0", "--val_every", "0",
)  # fmt: skip


def fresh_student(seed: int = 0) -> Segmenter:
    """The network that a run with ``seed`` starts from."""
    torch.manual_seed(seed)
    config = ModelConfig(**TINY_MODEL, dropout=0.0)
    return build_model(config, Classes(CLASS_NAMES, ((0, 0, 0),) * 3))


def test_accumulated_gradient_is_the_mean(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """One step of two batches moves the weights by the mean of the two gradients."""
    run = tmp_path / "run"
    flags = ["--optimizer.accumulate", "2", "--epochs", "1", "--optimizer.lr", "0.5"]
    check(run_cli(*train_command(root, run, *flags, *PLAIN_SGD)))
    model = fresh_student().train()
    before = {name: value.detach().clone() for name, value in model.net.named_parameters()}
    data = open_dataset("folder", str(root), "train")
    config = DataConfig(batch_size=4, workers=0, augment=AugmentConfig(crop=32))
    for batch in train_loader(data, config, plan_batches(len(data), config, 0, 1)):
        logits = resize(model(batch.image).logits, (32, 32), align_corners=True)
        loss = nn.functional.cross_entropy(logits, batch.mask.long(), ignore_index=255)
        (loss / 2).backward()
    trained = weights(run)
    for name, parameter in model.net.named_parameters():
        assert parameter.grad is not None
        step = before[name] - 0.5 * parameter.grad
        assert torch.allclose(trained[name], step, rtol=1e-4, atol=1e-5), name


def test_clipped_gradient(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """With rate 1, one step is as long as the largest norm that is allowed."""
    run = tmp_path / "run"
    flags = ["--data.batch_size", "8", "--epochs", "1", "--optimizer.lr", "1",
             "--optimizer.clip", "0.01"]  # fmt: skip
    check(run_cli(*train_command(root, run, *flags, *PLAIN_SGD)))
    trained = weights(run)
    moved = torch.cat(
        [(trained[n] - p.detach()).flatten() for n, p in fresh_student().net.named_parameters()]
    )
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-2)


def test_final_model_is_the_average(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """After two steps: 0.75 of the weights after the first, 0.25 of those after the second."""
    flags = ["--data.batch_size", "8", "--optimizer.lr", "0.1", *PLAIN_SGD]
    for name, more in {
        "one": ["--epochs", "1"],
        "two": ["--epochs", "2"],
        "average": ["--epochs", "2", "--optimizer.ema", "0.75"],
    }.items():
        check(run_cli(*train_command(root, tmp_path / name, *flags, *more)))
    one, two, average = (weights(tmp_path / name) for name in ("one", "two", "average"))
    for key, value in average.items():
        if value.is_floating_point():
            wanted = 0.75 * one[key] + 0.25 * two[key]
            assert torch.allclose(value, wanted, rtol=1e-4, atol=1e-6), key
    assert not same_weights(tmp_path / "two", tmp_path / "average")
    raw = checkpoint_of(tmp_path / "average")["distiller"]
    assert all(torch.equal(raw[f"student.net.{key}"], value) for key, value in two.items())
    # and it is what the metrics are of
    data = open_dataset("folder", str(root), "val")
    measured = evaluate(load_model(tmp_path / "average"), data).to_dict()
    result = result_of(tmp_path / "average")
    assert {name: result[name] for name in MEASURES} == measured


def test_start_from_a_trained_run(
    teacher: Path, root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    flags = ["--model.weights", teacher, "--optimizer.lr", "1e-12", "--epochs", "1"]
    check(run_cli(*train_command(root, run, *flags)))
    before, after = weights(teacher), weights(run)
    for name, _ in load_model(run).net.named_parameters():
        assert torch.allclose(before[name], after[name], atol=1e-6), name


def test_generated_data(tmp_path: Path, run_cli: RunCli) -> None:
    """The defaults of the data: digits, with options from the command line."""
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    run = tmp_path / "run"
    options = "{size: 48, scenes: 4}"
    flags = ["--data.options", options, "--data.batch_size", "4", "--data.workers", "0",
             "--data.augment.crop", "32", "--epochs", "1", "--accelerator", "cpu"]  # fmt: skip
    check(run_cli("train", "--run", run, *flags, *model_flags("model")))
    assert result_of(run)["images"] == 4
    assert len(result_of(run)["per_class_iou"]) == 11
    out = tmp_path / "metrics.json"
    check(run_cli("evaluate", run, "--data.options", options, "--json", out))
    assert json.loads(out.read_text())["miou"] == result_of(run)["miou"]


# the Python API does what the commands do


class _DictNet(nn.Module):
    """A foreign network, as torchvision's: a dict of logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits: Tensor = self.net(image).logits
        return {"out": logits}


@pytest.fixture(scope="module")
def distilled(place: Path, root: Path, teacher: Path) -> Path:
    """One epoch of AICSD by the command line, for the API to repeat."""
    run = place / "distilled"
    aicsd(*distill_command(root, teacher, run, "--epochs", "1", "--seed", "3"))
    return run


def api_settings(root: Path) -> dict[str, Any]:
    data = {"name": "folder", "root": str(root), "batch_size": 4, "workers": 0,
            "augment": {"crop": 32}}  # fmt: skip
    return {"data": data, "accelerator": "cpu", "epochs": 1, "log_every": 1}


@pytest.mark.parametrize("kind", ["path", "segmenter", "net", "dict"])
def test_distill_in_python(
    distilled: Path, root: Path, teacher: Path, tmp_path: Path, kind: str
) -> None:
    given: Any = teacher
    if kind != "path":
        given = load_model(teacher)
    if kind in ("net", "dict"):
        given = given.net
    if kind == "dict":
        given = _DictNet(given)
    run = package.distill(
        given, student=TINY_MODEL, run=tmp_path / "run", seed=3, **api_settings(root)
    )
    assert same_weights(distilled, tmp_path / "run")
    assert run.path == tmp_path / "run"
    assert run.metrics == result_of(run.path)
    wanted, found = result_of(distilled), result_of(run.path)
    # a module that declares nothing is resized without aligned corners
    changed = {"seconds": 0, "teacher": {}} if kind in ("net", "dict") else {"seconds": 0}
    assert {**found, **changed} == {**wanted, **changed}
    assert not run.student.training
    image = root / "images" / "val" / "000.png"
    assert np.array_equal(run.student.predict(image), load_model(distilled).predict(image))


def test_train_in_python(baseline: Path, root: Path, tmp_path: Path) -> None:
    run = package.train(TINY_MODEL, run=tmp_path / "run", **api_settings(root))
    assert same_weights(baseline, run.path)
    assert run.metrics["miou"] == result_of(baseline)["miou"]


def test_distill_in_python_with_terms(root: Path, teacher: Path, tmp_path: Path) -> None:
    package.distill(
        teacher, TINY_MODEL, run=tmp_path / "run", terms={"icsd": {"weight": 7}},
        optimizer={"name": "adamw", "lr": 0.001}, **api_settings(root),
    )  # fmt: skip
    lines_ = train_lines(tmp_path / "run")
    assert lines_[1]["weight/icsd"] == 3.5
    assert lines_[0]["lr"] == 0.001


def test_short_forms_of_the_python_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backbone for a model; digits or a folder for data."""
    seen: list[Any] = []
    monkeypatch.setattr("aicsd.api.run_training", lambda config, *_: seen.append(config))
    monkeypatch.setattr("aicsd.api.run_distillation", lambda config, *_: seen.append(config))
    package.train("resnet18", tmp_path)
    package.train()
    package.distill(tmp_path / "run", "mobilenetv2_100", str(tmp_path), method="kd", epochs=3)
    first, second, third = seen
    assert (first.model.backbone, first.data.named().name, first.data.root) == (
        "resnet18", "folder", str(tmp_path),
    )  # fmt: skip
    assert second.data.name == "digits"
    assert third.student.backbone == "mobilenetv2_100"
    assert (third.teacher, third.method, third.epochs) == (str(tmp_path / "run"), "kd", 3)
    assert third.data.root == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"optimizer": {"lrr": 3}}, "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'"),
        ({"optimizer": 3}, "optimizer is 3; it must hold keys"),
        ({"epochs": 0}, "epochs is 0"),
        ({"model": "resnet19"}, "unknown backbone 'resnet19'"),
        ({"data": "nowhere"}, "no folder nowhere"),
    ],
    ids=["key", "nested", "section", "value", "backbone", "data"],
)
def test_errors_in_python(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    from aicsd.errors import UserError

    with pytest.raises(UserError, match=message):
        package.train(**{"run": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error")
def test_load_model_and_predict(student: Path, root: Path) -> None:
    image = root / "images" / "val" / "001.png"
    pixels = np.asarray(Image.open(image))
    model = package.load_model(student)
    assert isinstance(model, Segmenter)
    assert not model.training
    assert model.classes.names == CLASS_NAMES
    ids = model.predict(image)
    assert ids.shape == (48, 64)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, model.predict(pixels))
    assert np.array_equal(ids, package.load_model(student / "model.safetensors").predict(image))


def test_run_folder_can_be_moved(student: Path, tmp_path: Path, root: Path) -> None:
    shutil.copytree(student, tmp_path / "moved")
    image = root / "images" / "val" / "001.png"
    moved, original = load_model(tmp_path / "moved"), load_model(student)
    assert np.array_equal(moved.predict(image), original.predict(image))
    assert math.isclose(
        evaluate(moved, open_dataset("folder", str(root), "val")).miou, result_of(student)["miou"]
    )
