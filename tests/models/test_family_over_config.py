"""A family of networks on the command line, over a config that is made for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aicsd.cli import find_command
from aicsd.cli.parser import parse
from aicsd.config import build_config
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models import ModelConfig, build_model

CLASSES = Classes(("ground", "tree"), ((0, 0, 0), (0, 255, 0)))


def settings(words: str) -> dict[str, Any]:
    _, command, rest = find_command([*words.split(), "--run", "r"])
    return parse(command, rest)


@pytest.mark.parametrize(
    ("family", "more", "kept"),
    [
        ("lraspp", "weights none", {"backbone": "mobilenetv2_100"}),
        ("torchvision:lraspp_mobilenet_v3_large", "weights none", {}),
        ("smp:unet", "weights none", {}),
        ("smp:fpn", "backbone resnet18", {"weights": "imagenet"}),
        ("transformers:segformer-b0", "", {}),
    ],
)
@pytest.mark.parametrize(
    ("start", "section"),
    [("train --config folder/teacher", "model"), ("distill --config folder/aicsd", "student")],
)
def test_every_family_over_a_config_of_the_package(
    start: str,
    section: str,
    family: str,
    more: str,
    kept: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if section == "model" and "backbone" in kept:
        kept = {"backbone": "resnet101"}
    key, _, value = more.partition(" ")
    flags = f"--{section}.{key} {value}" if more else ""
    found = settings(f"{start} --{section}.family {family} {flags}")
    assert found[section] == {"family": family, **kept, **({key: value} if more else {})}
    assert found["optimizer"]["lr"] == 0.007  # the rest of the config
    note = capsys.readouterr().err
    left = f"{section}.{'weights' if 'segformer' in family else 'backbone'}"
    assert note.count("\n") <= 1
    assert (left in note) == (family != "lraspp")
    if "imagenet" not in kept.values() and section == "student":  # those would be downloaded
        built = build_model(build_config(ModelConfig, found[section]), CLASSES)
        assert built.maps["logits"].channels == 2


def test_one_family_keeps_the_keys_of_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings("distill --config folder/aicsd")["student"]
    named = settings("distill --config folder/aicsd --student.family deeplabv3plus")["student"]
    assert named == {**whole, "family": "deeplabv3plus"}
    unet = tmp_path / "unet.yaml"
    unet.write_text("student: {family: 'smp:unet', backbone: resnet18, options: {binary: true}}")
    other = settings(f"distill --config {unet} --student.family smp:fpn")["student"]
    assert other == {"family": "smp:fpn", "backbone": "resnet18", "options": {"binary": True}}
    assert not capsys.readouterr().err


def test_a_config_over_a_config(tmp_path: Path) -> None:
    """Whichever layer names the family; and back to the first one."""
    unet = tmp_path / "unet.yaml"
    unet.write_text("student: {family: 'smp:unet', backbone: resnet18}")
    over = settings(f"distill --config folder/aicsd --config {unet}")
    assert over["student"] == {"family": "smp:unet", "backbone": "resnet18", "weights": "imagenet"}
    back = settings(f"distill --config {unet} --student.family deeplabv3plus")["student"]
    assert back == {"family": "deeplabv3plus"}


def test_a_family_over_a_network_by_name() -> None:
    found = settings("distill --student.family smp:unet --student small")["student"]
    assert found == {"family": "smp:unet", "weights": "imagenet"}


def test_an_unknown_family_is_one_line() -> None:
    found = settings("distill --config folder/aicsd --student.family smq:unet")
    with pytest.raises(UserError, match=r"unknown family 'smq'; did you mean 'smp'"):
        build_model(build_config(ModelConfig, found["student"]), CLASSES)
