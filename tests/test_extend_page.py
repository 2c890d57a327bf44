"""The page about extending: its Python runs, in order, with tiny networks and images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL, write_folder
from tiny_runs import train_lines

import aicsd
from aicsd.errors import UserError

PAGE = Path(__file__).parent.parent / "docs" / "extend.md"
TINY_DATA: dict[str, Any] = {"batch_size": 4, "workers": 0, "augment": {"crop": 48}}
OPTIONS: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "log_every": 1, "report_images": 0}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which the page's blocks ran, and the names that they left."""
    place = tmp_path_factory.mktemp("extend")
    distill, calls = aicsd.distill, []

    def quick(teacher: Any, student: Any = "mobilenetv2_050", data: Any = "", **given: Any) -> Any:
        calls.append(given["run"])
        if isinstance(student, str):
            student = {**TINY_MODEL, "backbone": student}
        train = {"train": data[0], "val": data[1]} if isinstance(data, tuple) else {"root": data}
        return distill(teacher, student, {**train, **TINY_DATA}, **{**OPTIONS, **given})

    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_folder(place / "my_data")
        aicsd.train(TINY_MODEL, {"root": "my_data", **TINY_DATA}, "runs/teacher", **OPTIONS)
        patch.setattr(aicsd, "distill", quick)
        for block in re.findall(
            r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
        ):
            exec(compile(block, str(PAGE), "exec"), names)
    assert calls == ["runs/own_loss", "runs/own_student", "runs/own_features", "runs/own_data"]
    return place, names


def test_the_own_loss_and_its_adapter_are_trained_and_stay_out_of_the_student(
    page: tuple[Path, dict[str, Any]],
) -> None:
    run = page[0] / "runs" / "own_loss"
    assert all(line["loss/mine"] > 0 and line["weight/mine"] == 0.1 for line in train_lines(run))
    states = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["distiller"]
    adapters = [key for key in states if key.startswith("terms.mine.adapters")]
    assert len(adapters) == 1
    assert not any("adapter" in key for key in aicsd.load_model(run).net.state_dict())


def test_the_own_student_is_the_module_that_was_given(page: tuple[Path, dict[str, Any]]) -> None:
    place, names = page
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        wanted = names["student"].eval()((image / 255 - names["again"].mean) / names["again"].std)
        assert torch.allclose(names["again"](image).logits, wanted, atol=1e-5)
    with pytest.raises(UserError, match="net="):
        aicsd.load_model(place / "runs" / "own_student")


def test_the_tapped_feature_is_compared_and_adds_no_weights(
    page: tuple[Path, dict[str, Any]],
) -> None:
    run, names = page[0] / "runs" / "own_features", page[1]
    assert all(line["loss/mine"] > 0 for line in train_lines(run))
    assert names["tapped"].maps["hidden"] == (16, 4)
    states = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["distiller"]
    (adapter,) = (value for key, value in states.items() if ".adapters." in key)
    assert adapter.shape[1] == 16
    assert set(aicsd.load_model(run, net=names["tapped"].net).net.state_dict()) == {
        f"net.{number}.{part}" for number in (0, 2, 4) for part in ("weight", "bias")
    }


def test_a_run_of_a_module_goes_on_when_the_module_is_given_again(
    page: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    place, names = page
    run = place / "runs" / "own_student"
    data = {"root": str(place / "my_data"), **TINY_DATA}
    options: dict[str, Any] = {
        "method": "kd",
        "run": run,
        "resume": True,
        **OPTIONS,
        "report_images": 1,
    }
    assert not (run / "report.html").exists()
    with pytest.raises(UserError, match="a module of your own: give it from Python"):
        aicsd.distill(place / "runs/teacher", {"family": "module"}, data, **options)
    again = aicsd.distill(place / "runs/teacher", names["student"], data, **options)
    assert (run / "report.html").is_file()
    assert again.metrics["images"] == 4


def test_the_own_dataset_was_trained_on(page: tuple[Path, dict[str, Any]]) -> None:
    assert page[1]["run"].metrics["images"] == 8
    assert len(train_lines(page[0] / "runs" / "own_data")) == 4


def test_a_student_of_other_classes_is_refused(page: tuple[Path, dict[str, Any]]) -> None:
    place, _ = page
    student = torch.nn.Conv2d(3, 5, 1)
    data = {"root": str(place / "my_data"), **TINY_DATA}
    with pytest.raises(UserError, match="the student has 5 logits per pixel, and the data 3"):
        aicsd.distill(place / "runs/teacher", student, data, run=place / "refused", **OPTIONS)
    assert not (place / "refused").exists()
