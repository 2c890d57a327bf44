"""Help, version and printed configs of the command line."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from command_runs import check
from conftest import RunCli
from tiny_runs import explanation

import aicsd as package
from aicsd.cli import find_command, main
from aicsd.run_settings import flatten
from aicsd.settings import leaves


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
    """The script that pip installs as ``aicsd``; test_cli_errors.py runs ``python -m aicsd``."""
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
