"""aicsd init: what it chooses for which data and machine, and that its config and commands hold."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_folder
from PIL import Image

from aicsd.cli import find_command
from aicsd.cli.parser import parse, read_config
from aicsd.config import build_config
from aicsd.data.augment import draw_view
from aicsd.data.padding import padding_share, padding_warning
from aicsd.data.settings import AugmentConfig
from aicsd.errors import UserError
from aicsd.run_config import DistillConfig
from aicsd.starter import choose, next_commands, render, write_config
from aicsd.starter_facts import Facts, Machine, read_facts

LAPTOP = Machine(cores=4, memory_gb=16.0)
SERVER = Machine(cores=16, memory_gb=128.0, gpu="Card", gpu_memory_gb=80.0, bfloat16=True)


def facts(
    size: tuple[int, int] = (480, 640),
    images: int = 400,
    pixels: tuple[int, ...] = (60, 40),
    unlabelled: int = 0,
) -> Facts:
    names = tuple(f"class {number}" for number in range(len(pixels)))
    return Facts(Counter({size: images}), names, pixels, unlabelled)


def chosen(found: Facts, machine: Machine) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choose(found, machine, "folder", "my_data")}


@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((180, 240), AugmentConfig(crop=512)),
        ((300, 200), AugmentConfig(crop=256, scale_min=0.75, scale_max=1.25)),
        ((1000, 3000), AugmentConfig(crop=128, short_side=160)),
        ((500, 500), AugmentConfig(crop=64)),
    ],
)
def test_the_share_of_padding_is_that_of_drawn_crops(
    size: tuple[int, int], config: AugmentConfig
) -> None:
    rng = np.random.default_rng(0)
    views = [draw_view(*size, rng, config) for _ in range(4000)]
    filled = np.mean([view.content_rows * view.content_columns for view in views])
    assert padding_share({size: 3}, config) == pytest.approx(1 - filled / config.crop**2, abs=0.015)


def test_a_warning_from_half_of_the_crop_on() -> None:
    small = padding_warning({(180, 240): 10}, AugmentConfig(crop=512))
    assert small is not None
    assert small.startswith("warning: 7")
    assert "try --data.augment.crop 160" in small
    assert padding_warning({(180, 240): 10}, AugmentConfig(crop=160)) is None
    shrunk = padding_warning({(180, 240): 1}, AugmentConfig(crop=160, scale_min=0.1, scale_max=0.5))
    assert shrunk is not None
    assert shrunk.endswith("raise --data.augment.scale_min")
    assert padding_warning({}, AugmentConfig()) is None


def test_a_training_warns(tiny_folder: Path, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    from tiny_runs import train_command

    for crop, warns in (("32", False), ("256", True)):
        command = train_command(tiny_folder, tmp_path / crop, "--epochs", "1", "--report_images", 0)
        command[command.index("--data.augment.crop") + 1] = crop
        code, _, error = run_cli(*command, "--val_every", 0)
        assert code == 0, error
        assert ("of a crop is padding on average" in error) is warns


def test_crops_fit_the_images_and_the_machine() -> None:
    crops = {
        (size, machine.kind): chosen(facts(size), machine)["data.augment.crop"]
        for size in ((120, 160), (180, 240), (480, 640), (1080, 1920), (3000, 4000))
        for machine in (LAPTOP, SERVER)
    }
    assert all(crop % 32 == 0 for crop in crops.values())
    assert crops[(120, 160), "cpu"] == crops[(120, 160), "gpu"] <= 160
    assert crops[(480, 640), "cpu"] == 256
    assert crops[(1080, 1920), "gpu"] == 512
    for (size, _), crop in crops.items():
        assert padding_share({size: 1}, AugmentConfig(crop=crop)) <= 0.25
    large = chosen(facts((3000, 4000)), LAPTOP)
    assert (large["data.augment.scale_min"], large["data.augment.scale_max"]) == (0.25, 1.0)


def test_batches_fit_the_number_of_images_and_the_memory() -> None:
    assert chosen(facts(images=400), LAPTOP)["data.batch_size"] == 8
    assert chosen(facts(images=400), SERVER)["data.batch_size"] == 16
    assert chosen(facts(images=12), SERVER)["data.batch_size"] == 2
    assert chosen(facts(images=20), LAPTOP)["data.batch_size"] == 4
    small = SERVER._replace(gpu_memory_gb=8.0)
    assert chosen(facts((1080, 1920)), small)["data.batch_size"] == 4  # 4 x 1.5 GB, below 8 GB


def test_the_number_of_steps_does_not_depend_on_the_number_of_images() -> None:
    for images in (12, 100, 2000):
        values = chosen(facts(images=images), LAPTOP)
        steps = values["epochs"] * (images // values["data.batch_size"])
        assert 1300 <= steps <= 2600
        assert 1 <= values["val_every"] <= values["epochs"]


def test_rare_classes_get_weights() -> None:
    key = "terms.cross_entropy.class_weights"
    assert key not in chosen(facts(pixels=(50, 50)), LAPTOP)
    assert key not in chosen(facts(pixels=(50, 50, 0)), LAPTOP)  # absent, which no weight cures
    assert chosen(facts(pixels=(9950, 50)), LAPTOP)[key] == "log_balanced"


def test_students_and_loading_follow_the_machine() -> None:
    assert chosen(facts(), LAPTOP)["student.backbone"] == "mobilenetv2_050"
    assert chosen(facts(), SERVER)["student.backbone"] == "mobilenetv2_100"
    assert chosen(facts(pixels=(5,) * 21), LAPTOP)["student.backbone"] == "mobilenetv2_100"
    assert chosen(facts(), LAPTOP)["data.workers"] == 1
    assert chosen(facts(), SERVER)["data.workers"] == 8
    assert chosen(facts(), SERVER)["precision"] == "bf16-mixed"
    assert "precision" not in chosen(facts(), LAPTOP)
    # 400 images of 480x640x4 bytes are 0.49 GB
    assert 491 <= chosen(facts(), LAPTOP)["data.cache_mb"] <= 494
    assert "data.cache_mb" not in chosen(facts(), LAPTOP._replace(memory_gb=1.5))
    assert "data.cache_mb" not in chosen(facts(), LAPTOP._replace(memory_gb=None))


@pytest.mark.parametrize("machine", [LAPTOP, SERVER])
@pytest.mark.parametrize("unlabelled", [0, 900])
def test_the_config_says_what_was_chosen(machine: Machine, unlabelled: int, tmp_path: Path) -> None:
    found = facts(pixels=(9950, 50), unlabelled=unlabelled)
    choices = choose(found, machine, "folder", "my data: it's mine")
    path = tmp_path / "c.yaml"
    path.write_text(text := render(choices, found, machine))
    assert max(map(len, text.splitlines())) <= 100
    keys = read_config(str(path), DistillConfig)
    build_config(DistillConfig, {**keys, "run": "runs/x"})
    for choice in choices:
        value: Any = keys
        for part in choice.key.split("."):
            value = value[part]
        assert value == choice.value
    for reason in ("Class imbalance", "padding on average", "steps"):
        assert reason in text
    commands = next_commands(choices, found, "my data: it's mine", path)
    assert len(commands) == 4
    for words in map(shlex.split, commands):
        _, command, rest = find_command(words[1:])
        values = parse(command, rest)
        if command.takes_config:
            assert build_config(command.target, values).data.root == "my data: it's mine"
    alone = parse(find_command(["distill"])[1], shlex.split(commands[1])[2:])["data"]
    # 400 labelled images twice and 900 others: 4.25 times 400
    assert int(alone.get("labelled_repeat", 1)) == (4 if unlabelled else 1)
    assert alone.get("train_split", "train") == "train"


def test_the_command(
    tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "my_data", {"train": 8, "val": 4, "unlabelled": 16})
    code, printed, error = run_cli("init", "my_data")
    assert code == 0, error
    assert printed.splitlines()[0].startswith("my_data.yaml: ")
    assert (
        "aicsd distill --config my_data.yaml --teacher runs/teacher --run runs/distilled" in printed
    )
    keys = read_config("my_data.yaml", DistillConfig)
    assert keys["method"] == "dist"
    assert keys["data"]["root"] == "my_data"
    assert keys["data"]["train_split"] == "train+unlabelled"
    assert keys["data"]["labelled_repeat"] == 2
    code, printed, error = run_cli("init", "my_data")
    assert (code, printed) == (2, "")
    assert "my_data.yaml exists: remove it, or give another file with --out" in error
    assert run_cli("init", "my_data", "--out", "other.yaml")[0] == 0


def test_the_facts_of_a_folder(tmp_path: Path) -> None:
    found = read_facts("folder", str(write_folder(tmp_path / "data")))
    assert (found.images, found.short_side, found.unlabelled) == (8, 48, 0)
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "data/masks/train").iterdir()]
    assert found.pixels == tuple(int(sum((m == c).sum() for m in masks)) for c in range(3))


def test_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"train": 1, "val": 1})
    with pytest.raises(UserError, match="has 1 training image; 2 or more are needed"):
        write_config(str(root), str(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match=r"must end in \.yaml"):
        write_config(str(root), str(tmp_path / "c.txt"))
    (root / "masks/train/000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="lists all"):
        write_config(str(root), str(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match="no folder"):
        write_config(str(tmp_path / "none"), str(tmp_path / "c.yaml"))
    assert not (tmp_path / "c.yaml").exists()
