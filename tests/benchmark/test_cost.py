"""Cost of a training: the parts of a step, counts, stand-ins, and savings by switches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL, RunCli, write_folder
from tiny_runs import (
    FIT_FLAGS,
    NO_REPORT,
    aicsd,
    data_flags,
    distill_command,
    model_flags,
    train_lines,
)
from torch import Tensor, nn

from aicsd.benchmark.inputs import read_network
from aicsd.benchmark.settings import CostConfig
from aicsd.benchmark.steps import PARTS, ClockedSteps, repeated
from aicsd.benchmark.switches import RunTime, estimated_switches, of_step, step_variants
from aicsd.config import build_config
from aicsd.data import Classes, open_dataset
from aicsd.data.batches import plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.settings import DataConfig
from aicsd.distiller import Distiller
from aicsd.engine.device import open_fabric
from aicsd.evaluation.cost import gmacs
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model, load_model, save_model
from aicsd.teacher import Teacher
from aicsd.types import Batch

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
CONFIGS = Path(__file__).parents[2] / "aicsd" / "configs"
PARTS_OF_RUN = {"data": 0.1, "teacher": 0.3, "student": 0.2, "losses": 0.1, "backward": 0.25,
                "optimizer": 0.05}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, and an untrained teacher in ``teacher.safetensors``."""
    folder = tmp_path_factory.mktemp("cost")
    write_folder(folder / "data")
    torch.manual_seed(0)
    save_model(build_model(ModelConfig(**TINY_MODEL), CLASSES), folder / "teacher.safetensors")
    return folder


def cost_command(root: object, *more: object) -> list[str]:
    flags = [*data_flags(root), "--data.batch_size", "4", *FIT_FLAGS, *model_flags("student")]
    return ["benchmark", "cost", *flags, "--steps", "1", *map(str, more)]


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    code, _, error = result
    assert code == 2
    *progress, last = error.splitlines()
    assert last.startswith("aicsd: error: ")
    assert len(progress) <= 1  # what takes long says what it does
    for word in words:
        assert word in last


# counts


def test_gmacs_of_a_network_counted_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, (1, 3)),  # 20 x 48: 20 * 46 positions * 4 channels * 9 weights
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),  # 10 x 23 * 4 channels * 9 weights
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),  # 10 x 23 * 3 channels * 4 weights
    )
    expected = 20 * 46 * 4 * 9 + 10 * 23 * 4 * 9 + 10 * 23 * 3 * 4
    assert gmacs(Segmenter(net, CLASSES), 48, 20) == pytest.approx(expected / 1e9, rel=1e-12)
    assert not any(parameter.is_meta for parameter in net.parameters())


# the split of a step


class Slow(nn.Module):
    """A 1x1 convolution that takes a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.seconds = seconds

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(self.seconds)
        logits: Tensor = self.conv(image)
        return logits


def test_every_part_gets_its_own_time() -> None:
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), mask, mask == 0)

    def late() -> Iterator[Batch]:
        for ready in repeated([batch]):
            time.sleep(0.03)
            yield ready

    config = build_config(CostConfig, {"accelerator": "cpu"})
    teacher = Teacher(Segmenter(Slow(0.2), CLASSES), CLASSES)
    distiller = Distiller(Segmenter(Slow(0.1), CLASSES), load_recipe("kd"), teacher)
    clocked = ClockedSteps(config, distiller, late(), 10, open_fabric(config))
    began = time.perf_counter()
    steps = [clocked.step() for _ in range(3)]
    whole = time.perf_counter() - began
    best = {part: min(step[part] for step in steps) for part in PARTS}
    assert 0.03 <= best["data"] < 0.1 <= best["student"] < 0.2 <= best["teacher"] < 0.3
    assert 0 < best["losses"] < 0.1
    assert 0 < best["backward"] < 0.1
    assert 0 < best["optimizer"] < 0.1
    # nothing is left out and nothing counts twice
    assert sum(sum(step.values()) for step in steps) == pytest.approx(whole, rel=0.1)
    teacher(batch.image)  # no clock remains on a network after a step
    assert sum(sum(step.values()) for step in steps) < whole


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_steps_are_those_of_a_training(place: Path, tmp_path: Path, accumulate: int) -> None:
    common = ("--epochs", 4, "--student.dropout", 0, "--optimizer.accumulate", accumulate,
              "--optimizer.clip", 1, "--val_every", 0, *NO_REPORT)  # fmt: skip
    teacher = place / "teacher.safetensors"
    aicsd(*distill_command(place / "data", teacher, tmp_path / "run", *common))
    trained = [line["loss"] for line in train_lines(tmp_path / "run")]

    keys = {
        "data": {"name": "folder", "root": str(place / "data"), "batch_size": 4, "workers": 0,
                 "augment": {"crop": 32}},
        "student": {**TINY_MODEL, "dropout": 0.0}, "epochs": 4, "accelerator": "cpu",
        "optimizer": {"accumulate": accumulate, "clip": 1.0},
    }  # fmt: skip
    config = build_config(CostConfig, keys)
    data = open_dataset("folder", str(place / "data"), "train")
    torch.manual_seed(config.seed)
    student = build_model(config.student, data.classes).to(memory_format=torch.channels_last)
    frozen = Teacher(load_model(teacher), data.classes)
    frozen.speed_up("eager", 32)
    distiller = Distiller(student, config.recipe, frozen)
    plan = plan_batches(len(data), config.data, config.seed, config.epochs, accumulate)
    total = plan.stop // accumulate
    # crops beyond an image are filled with the mean colour of the network
    batches = train_loader(data, config.data, plan, color=student.input.color)
    clocked = ClockedSteps(config, distiller, batches, total, open_fabric(config))
    measured = []
    for _ in range(total):
        clocked.step()
        measured.append(clocked.losses["loss"].item())
    assert len(trained) == total == 8 // accumulate
    assert measured == trained


# the command


def test_cost_of_a_distillation(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    before = sorted(place.rglob("*"))
    file = tmp_path / "cost.json"
    code, text, error = run_cli(
        *cost_command(place / "data", "--teacher", place / "teacher.safetensors", "--epochs", 5,
                      "--val_every", 2, "--json", file)
    )  # fmt: skip
    assert code == 0, error
    assert "data: folder train, 8 images, 3 classes (real images)" in text
    for words in ("RANDOM", "UNTRAINED"):
        assert words not in text
    cost = json.loads(file.read_text())
    assert list(cost["parts"]) == list(PARTS)
    assert min(cost["parts"].values()) > 0
    assert cost["step"] == pytest.approx(sum(cost["parts"].values()))
    assert cost["images_per_second"] == pytest.approx(4 / cost["step"])
    assert cost["image_size"] == [64, 48]
    parameters = load_model(place / "teacher.safetensors").num_parameters()
    assert cost["teacher"]["parameters"] == cost["student"]["parameters"] == parameters
    assert cost["student"]["gmacs_image"] > cost["student"]["gmacs_crop"] > 0
    assert cost["run"]["steps"] == 10
    assert cost["run"]["training"] == pytest.approx(10 * cost["step"])
    assert cost["run"]["validations"] == 3  # after epochs 2 and 4, and at the end
    assert cost["run"]["teacher"] > 0
    assert cost["memory"]["peak"] >= cost["memory"]["before"] > 2**20
    assert cost["memory"]["kept_calculated"] > 2**16
    settings = [switch["setting"] for switch in cost["switches"]]
    runtimes = ["teacher_runtime openvino"] if find_spec("openvino") else []
    assert settings == [
        "teacher_cache FOLDER", "data.workers 1", "val_every 0", *runtimes,
        "precision bf16-mixed", "terms.cross_entropy.resolution native",
    ]  # fmt: skip
    for part in PARTS:
        assert f"\n{part}" in text
    assert "whole run: " in text
    assert "= 10 steps" in text
    assert sorted(place.rglob("*")) == before


def test_cost_of_a_config_of_train(place: Path, run_cli: RunCli) -> None:
    command = [*data_flags(place / "data"), "--data.batch_size", "4", *FIT_FLAGS]
    for name, value in {**TINY_MODEL, "backbone": "test_resnet"}.items():
        command += [f"--model.{name}", str(value)]
    config = CONFIGS / "camvid" / "teacher.yaml"
    code, text, error = run_cli("benchmark", "cost", "--config", config, *command, "--steps", 1)
    assert code == 0, error
    assert "student  test_resnet" in text
    assert "teacher  " not in text.split("part of a step")[0]
    line = next(line for line in text.splitlines() if line.startswith("teacher "))
    assert line.split()[1] == "0.0"


def test_both_kinds_of_network_are_refused(place: Path, run_cli: RunCli) -> None:
    command = cost_command(place / "data", "--model.backbone", "resnet18")
    assert_one_line(run_cli(*command), "both model", "and student")


def test_camvid_that_is_not_there(run_cli: RunCli, place: Path, tmp_path: Path) -> None:
    config, file = CONFIGS / "camvid" / "aicsd.yaml", tmp_path / "cost.json"
    command = ["--method", "none", "--data.root", "nowhere", "--data.batch_size", 2, *FIT_FLAGS,
               *model_flags("student"), "--steps", 1, "--json", file]  # fmt: skip
    code, text, error = run_cli("benchmark", "cost", "--config", config, *command)
    assert code == 0, error
    assert "data: camvid train, 367 images, 11 classes (RANDOM IMAGES)" in text
    assert "there is no folder nowhere: RANDOM IMAGES stand in for the data" in text
    cost = json.loads(file.read_text())
    assert cost["image_size"] == [480, 360]
    assert cost["run"]["steps"] == 120 * (367 // 2)


def test_a_folder_that_is_not_there(run_cli: RunCli, place: Path) -> None:
    flags = ["--data.name", "folder", "--data.batch_size", "4", *FIT_FLAGS]
    command = ["benchmark", "cost", *flags, *model_flags("student"), "--steps", "1"]
    assert_one_line(run_cli(*command, "--method", "none"), "data.root is not given", "--classes N")
    code, text, error = run_cli(*command, "--method", "none", "--classes", 5, "--size", "70x40")
    assert code == 0, error
    assert "folder train, 5 classes (RANDOM IMAGES)" in text
    assert "GMACs, image 70x40" in text
    assert "whole run: unknown without the number of images; give --images N" in text
    teacher = ("--method", "sp", "--teacher", place / "teacher.safetensors")
    code, text, error = run_cli(*command, *teacher, "--images", 40, "--epochs", 2)
    assert code == 0, error
    assert "folder train, 40 images, 3 classes (RANDOM IMAGES)" in text
    assert "= 20 steps" in text


def test_a_teacher_that_is_not_there(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    command = cost_command(place / "data", "--teacher", tmp_path / "gone")
    assert_one_line(run_cli(*command), "there is no teacher at", "gone", "--teacher_config FILE")
    assert_one_line(run_cli(*cost_command(place / "data")), "no teacher is given")
    config = tmp_path / "teacher.yaml"
    config.write_text("model: {backbone: test_resnet, aspp_channels: 8, decoder_channels: 8}\n")
    code, text, error = run_cli(*command, "--method", "sp", "--teacher_config", config)
    assert code == 0, error
    assert f"teacher: UNTRAINED, the network of {config}" in text
    assert "teacher  test_resnet" in text
    run = tmp_path / "gone"  # a run that has begun has its config already
    run.mkdir()
    (run / "config.yaml").write_text("[]")
    words = (str(run / "config.yaml"), "must be a mapping")
    assert_one_line(run_cli(*command), *words)


def test_the_network_of_a_config(tmp_path: Path) -> None:
    assert read_network(CONFIGS / "camvid" / "teacher.yaml").backbone == "mobilenetv2_100"
    assert read_network(CONFIGS / "digits" / "aicsd.yaml").backbone == "test_resnet"
    with pytest.raises(ValueError, match=r"config nowhere\.yaml does not exist"):
        read_network(Path("nowhere.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must be a mapping"):
        read_network(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], ["steps is 0"]),
        (["--images", "0"], ["images is 0"]),
        (["--size", "480"], ["size is '480'", "WIDTHxHEIGHT"]),
        (["--size", "480x8"], ["size is '480x8'"]),
        (["--data.name", "camvit"], ["unknown dataset 'camvit'", "'camvid'"]),
        (["--data.nme", "voc"], ["unknown key 'data.nme'", "'data.name'"]),
        (["--data.batch_size", "9"], ["8 training images make no batch of 9"]),
        (["--optimizer", "3"], ["optimizer"]),
    ],
)
def test_mistakes(place: Path, run_cli: RunCli, flags: list[str], words: list[str]) -> None:
    command = cost_command(place / "data", "--method", "none", *flags)
    assert_one_line(run_cli(*command), *words)


def test_a_broken_dataset_is_no_missing_one(tmp_path: Path, run_cli: RunCli) -> None:
    root = write_folder(tmp_path / "data")
    (root / "classes.txt").unlink()
    assert_one_line(run_cli(*cost_command(root, "--method", "none")), "classes.txt")


@pytest.mark.parametrize("action", ["cost", "latency", "table"])
def test_help_explains_every_argument_of_a_benchmark(run_cli: RunCli, action: str) -> None:
    from tiny_runs import explanation

    from aicsd.cli import find_command
    from aicsd.settings import leaves

    code, text, _ = run_cli("benchmark", action, "--help_all")
    assert code == 0
    keys = [key for key, _ in leaves(find_command(["benchmark", action])[1].target)]
    assert len(keys) > 4
    for key in keys:
        positional = f"--{key}" not in text
        assert explanation(key if positional else f"--{key}", text), f"{key}: no explanation"


# switches


def config_with(**keys: Any) -> CostConfig:
    return build_config(CostConfig, keys)


def test_what_switches_save_follows_from_the_split() -> None:
    run = RunTime(steps=100, training=100.0, validations=5, validation=50.0, teacher=10.0)
    config = config_with(data={"workers": 0}, method="aicsd")
    found = {s.setting: s for s in estimated_switches(config, PARTS_OF_RUN, 1.35, run)}
    # the step is 1 s, 0.9 s without waiting: two processes load 1.35 s of work in that time
    assert list(found) == ["teacher_cache FOLDER", "data.workers 2", "val_every 0"]
    assert found["data.workers 2"].step == pytest.approx(0.9)
    assert found["data.workers 2"].saved == pytest.approx(0.1 * 100 / 160)
    assert found["val_every 0"].step is None
    assert found["val_every 0"].saved == pytest.approx(40 / 160)
    enough = replace(config, data=replace(config.data, workers=2), teacher_cache="cache")
    once = replace(run, validations=1)
    assert not estimated_switches(enough, PARTS_OF_RUN, 1.35, once)
    # without the number of images: parts of a step
    _, workers = estimated_switches(config, PARTS_OF_RUN, 1.35, None)
    assert workers.saved == pytest.approx(0.1)
    assert of_step("slower", 1.25, PARTS_OF_RUN, None, "").saved == pytest.approx(-0.25)


def test_a_teacher_cache_saves_the_share_of_the_teacher() -> None:
    config = CostConfig(data=DataConfig(workers=2))
    (cache,) = estimated_switches(config, PARTS_OF_RUN, 0.1, None)
    assert cache.setting == "teacher_cache FOLDER"
    assert cache.step == pytest.approx(0.7)
    assert cache.saved == pytest.approx(0.3)
    for other in (replace(config, teacher_cache="cache"), replace(config, method="none")):
        assert not estimated_switches(other, PARTS_OF_RUN, 0.1, None)


def test_variants_are_settings_that_change_something() -> None:
    variants = step_variants(config_with(method="aicsd"), "cuda")
    assert list(variants) == [
        "teacher_runtime compiled", "precision bf16-mixed", "terms.cross_entropy.resolution native",
    ]  # fmt: skip
    assert variants["teacher_runtime compiled"].teacher_runtime == "compiled"
    recipe = variants["terms.cross_entropy.resolution native"].recipe
    assert recipe.terms["cross_entropy"].resolution == "native"
    assert recipe.terms["icsd"] == config_with(method="aicsd").recipe.terms["icsd"]
    assert variants["precision bf16-mixed"].precision == "bf16-mixed"
    # the released protocol computes at the input's resolution whatever the recipe says
    released = config_with(method="none", protocol="released", precision="bf16-mixed")
    assert not step_variants(released, "cpu")


def test_openvino_is_tried_where_it_can_run() -> None:
    has_openvino = find_spec("openvino") is not None
    assert ("teacher_runtime openvino" in step_variants(config_with(method="kd"), "cpu")) == (
        has_openvino
    )
    for method in ("sp", "none"):  # features, no teacher
        names = step_variants(config_with(method=method), "cpu")
        assert not any(name.startswith("teacher_runtime") for name in names)
