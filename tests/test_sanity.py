"""Teachers that are no better than chance, and the headroom above the student alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CLASS_NAMES, TINY_MODEL, RunCli
from scipy.stats import norm
from tiny_runs import NO_REPORT, distill_command

from aicsd.data.protocol import Classes
from aicsd.engine import sanity, watchers
from aicsd.engine.sanity import (
    Headroom,
    check_classes,
    check_headroom,
    check_teacher,
    constant_miou,
    find_headroom,
    guessing_miou,
)
from aicsd.errors import UserError
from aicsd.evaluation.metrics import confusion_counts, metrics_from_confusion
from aicsd.models import ModelConfig, build_model, save_model


def test_chance_is_what_a_guess_and_a_constant_score() -> None:
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.choice(4, (400, 500), p=[0.6, 0.3, 0.1, 0.0]).astype(np.uint8))
    mask[:5] = 255
    guessed = torch.from_numpy(rng.integers(0, 4, mask.shape))
    for predicted, chance in ((guessed, guessing_miou), (torch.zeros_like(guessed), constant_miou)):
        counts = confusion_counts(predicted, mask, 4)
        measured = metrics_from_confusion(counts, ("a", "b", "c", "d"), 1).miou
        assert chance(counts.tolist()) == pytest.approx(measured, abs=3e-3)
    assert math.isnan(guessing_miou([[0, 0], [0, 0]]))
    assert math.isnan(constant_miou([[0, 0], [0, 0]]))


def test_a_teacher_is_refused_if_it_guesses() -> None:
    confusion = [[600, 0, 0], [0, 300, 0], [0, 0, 100]]
    guess, constant = guessing_miou(confusion), constant_miou(confusion)
    assert guess < constant < 0.3
    with pytest.raises(UserError, match=r"no better than guessing.*--force_teacher"):
        check_teacher(guess, confusion, False, 200)
    assert "no better than guessing" in (check_teacher(guess, confusion, True, 200) or "")
    assert "no better than guessing" in (check_teacher(guess, confusion, False, 199) or "")
    assert "the most common class" in (check_teacher(constant, confusion, False, 1000) or "")
    assert check_teacher(constant + 0.01, confusion, False, 1000) is None
    assert check_teacher(math.nan, [[0, 0], [0, 0]], False, 1000) is None


def test_seeds_that_show_half_of_the_headroom() -> None:
    """A two-sided z-test of 5 % finds half of the gap with 80 % power, and not with one less."""
    for gap, std in ((0.02, 0.005), (0.01, 0.005), (0.05, 0.02)):
        count = Headroom(gap, 0.5, 3, std).seeds

        def power(runs: int, gap: float = gap, std: float = std) -> float:
            shift = gap / 2 / (std * math.sqrt(2 / runs))
            return float(norm.sf(norm.isf(0.025) - shift))

        assert power(count) >= 0.8
        assert count == 2 or power(count - 1) < 0.8
    assert "half of it shows with 4 seeds" in str(Headroom(0.02, 0.5, 1, 0.005))
    assert "0.50 points between seeds is assumed" in str(Headroom(0.02, 0.5, 1, 0.005))
    assert "0.70 points between seeds)" in str(Headroom(0.02, 0.5, 2, 0.007))
    assert str(Headroom(-0.01, 0.5, 1, 0.005)).startswith("no headroom: teacher 49.00")


def test_a_teacher_no_better_than_the_student_is_refused() -> None:
    below, above = Headroom(0.0, 0.5, 1, 0.005), Headroom(0.001, 0.5, 1, 0.005)
    with pytest.raises(UserError, match=r"no headroom: teacher 50.00.*--force_teacher"):
        check_headroom(below, False, 200)
    check_headroom(below, True, 200)
    check_headroom(below, False, 199)
    check_headroom(above, False, 200)


def test_classes_in_another_order_are_named() -> None:
    names = ("road", "sky", "car", "tree")
    sound = [[90, 5, 3, 2], [4, 80, 0, 6], [9, 0, 20, 1], [1, 9, 0, 3]]
    assert check_classes(sound, names) == []
    swapped = [[row[1], row[0], *row[2:]] for row in sound]
    (line,) = check_classes(swapped, names)
    assert "sky fits road (IoU 0.79), road fits sky (IoU 0.77); are they in" in line
    assert check_classes([[0] * 4] * 4, names) == []
    # a class that is never found, because another one is found in its place
    assert check_classes([[90, 0, 0, 0], [0, 60, 0, 0], [0, 30, 0, 0], [0, 0, 0, 5]], names) == []


def finished(place: Path, name: str, seed: int, miou: float, **changes: object) -> None:
    config = {
        "seed": seed,
        "epochs": 2,
        "data": {"name": "x", "root": name},
        "method": "none",
        "student": {"backbone": "b"},
        "optimizer": {"lr": 0.1},
        **changes,
    }
    (place / name).mkdir()
    (place / name / "config.yaml").write_text(yaml.safe_dump(config))
    (place / name / "metrics.json").write_text(
        json.dumps(
            {
                "miou": miou,
                "class_accuracy": 0,
                "images": 1,
                "parameters": 1,
                "per_class_iou": {},
            }
        )
    )


def test_only_runs_of_the_same_student_alone_count(tmp_path: Path) -> None:
    finished(tmp_path, "a", 0, 0.50)
    finished(tmp_path, "b", 1, 0.52)
    finished(tmp_path, "kd", 2, 0.9, method="kd")
    finished(tmp_path, "longer", 3, 0.9, epochs=5)
    finished(tmp_path, "other", 4, 0.9, student={"backbone": "c"})
    finished(tmp_path, "data", 5, 0.9, data={"name": "y", "root": "r"})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("{")
    (tmp_path / "broken" / "metrics.json").write_text("{")
    config = yaml.safe_load((tmp_path / "kd" / "config.yaml").read_text())
    found = find_headroom(tmp_path / "new", config, 0.61)
    assert found is not None
    assert found == pytest.approx((0.10, 0.51, 2, 0.02 / math.sqrt(2)))
    assert find_headroom(tmp_path / "new", {**config, "epochs": 7}, 0.61) is None
    (tmp_path / "b" / "inputs.json").write_text('{"resumed_from": {"epochs": "1"}}')
    alone = find_headroom(tmp_path / "new", config, 0.61)
    assert alone is not None
    assert (alone.alone, alone.runs) == (0.5, 1)


def test_a_run_says_so(
    tiny_folder: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "TRIAL_STEPS", 1)
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_MODEL), Classes(CLASS_NAMES, ((0, 0, 0),) * 3))
    with torch.no_grad():
        model.net.get_parameter("classifier.weight").zero_()
        bias = model.net.get_parameter("classifier.bias")
        bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # the rarest class
    save_model(model, tmp_path / "t.safetensors")
    runs = tmp_path / "runs"
    more = (*NO_REPORT, "--epochs", "1", "--method", "none")
    alone = distill_command(tiny_folder, tmp_path / "t.safetensors", runs / "alone", *more)
    assert run_cli(*alone)[0] == 0
    command = [*alone[:-1], "kd"]
    command[command.index(str(runs / "alone"))] = str(runs / "kd")
    code, _, error = run_cli(*command)
    assert (code, "no better than guessing" in error) == (2, True), error
    assert not (runs / "kd" / "metrics.json").exists()
    shutil.copytree(runs / "kd", runs / "compared")
    in_benchmark = ("--resume", "--in_benchmark", "true")
    code, _, error = run_cli("distill", "--run", runs / "kd", *in_benchmark)
    assert (code, "no better than guessing" in error) == (2, True), error
    with monkeypatch.context() as patch:
        patch.setattr(watchers, "check_teacher", lambda *_: None)
        patch.setattr(watchers, "find_headroom", lambda *_: Headroom(-0.1, 0.5, 1, 0.005))
        code, _, error = run_cli("distill", "--run", runs / "compared", "--resume")
        assert (code, "no headroom" in error) == (2, True), error
        code, _, error = run_cli("distill", "--run", runs / "compared", *in_benchmark)
        assert (code, "no headroom" in error) == (0, True), error
    code, _, error = run_cli("distill", "--run", runs / "kd", "--resume", "--force_teacher", "true")
    assert code == 0, error
    assert "kd: warning: the teacher's val mIoU" in error
    assert "kd: headroom " in error or "kd: no headroom: teacher " in error
