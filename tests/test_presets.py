"""Networks by name: ``--student small``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from conftest import RunCli

import aicsd
from aicsd.cli.fit import DISTILL, TRAIN
from aicsd.cli.parser import parse
from aicsd.config import build_config
from aicsd.data.protocol import Classes
from aicsd.models import ModelConfig, build_model
from aicsd.models.presets import PRESETS
from aicsd.models.settings import DeepLabV3PlusOptions
from aicsd.models.sources import lraspp
from aicsd.run_config import DistillConfig

CLASSES = Classes(("a", "b"), ((0, 0, 0), (255, 255, 255)))


def student(*words: str) -> ModelConfig:
    return build_config(DistillConfig, parse(DISTILL, ["--run", "r", *words])).student


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_small_enough_for_a_phone(name: str) -> None:
    keys = PRESETS[name] | {"weights": "none"}
    model = build_model(ModelConfig(**keys), CLASSES)
    assert sum(value.numel() for value in model.parameters()) <= 2e6


def test_a_preset_replaces_the_network_of_the_config() -> None:
    found = student("--config", "folder/aicsd", "--student", "small")
    assert found == ModelConfig(**PRESETS["small"])


@pytest.mark.parametrize("order", [1, -1])
def test_keys_beside_a_preset_go_over_it(order: int) -> None:
    flags = [("--student", "small"), ("--student.weights", "none")][::order]
    words = [word for flag in flags for word in flag]
    found = student("--config", "folder/aicsd", *words)
    assert found == ModelConfig(**PRESETS["small"] | {"weights": "none"})


def test_a_config_file_names_a_preset(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("student: small\n")
    found = student("--config", str(config), "--student.output_stride", "32")
    assert found == ModelConfig(**PRESETS["small"], output_stride=32)


def test_a_teacher_takes_a_preset_too() -> None:
    values = parse(TRAIN, ["--run", "r", "--model", "small"])
    assert values["model"] == PRESETS["small"]


def test_an_unknown_preset_is_refused(run_cli: RunCli) -> None:
    code, _, error = run_cli("distill", "--run", "r", "--student", "smal")
    assert code == 2
    assert error == (
        "aicsd: error: student is 'smal'; it must be the name of a preset (small) or hold keys "
        "such as student.backbone\n"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_python_takes_a_preset(name: str) -> None:
    assert name in aicsd.list_models()
    model = aicsd.create_model(name, 2)
    keys = PRESETS[name] | {"weights": "none"}
    built = build_model(ModelConfig(**keys), CLASSES)
    assert [*model.state_dict()] == [*built.state_dict()]


@pytest.mark.parametrize("words", [["--help"], ["--help_all"]])
def test_help_names_the_presets(words: list[str], run_cli: RunCli) -> None:
    assert f"--student {{{','.join(PRESETS)}}}" in run_cli("distill", *words)[1]
    assert f"--model {{{','.join(PRESETS)}}}" in run_cli("train", *words)[1]


def test_a_shared_key_has_one_default() -> None:
    """A key at its default is not handed on: a family with another one would build its own."""
    shared = {key.name: key.default for key in fields(DeepLabV3PlusOptions)}
    own = {key.name: key.default for key in fields(lraspp.Options) if key.name in shared}
    assert own == {name: shared[name] for name in own}


def test_the_backbone_that_is_named_is_the_one_that_is_built() -> None:
    model = build_model(ModelConfig(family="lraspp", backbone="mobilenetv2_050"), CLASSES)
    assert sum(value.numel() for value in model.parameters()) < 1e6


def test_help_names_every_method(run_cli: RunCli) -> None:
    text = " ".join(run_cli("distill", "--help")[1].split())
    assert ", ".join(aicsd.list_methods()) in text
