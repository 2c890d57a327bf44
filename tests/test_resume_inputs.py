"""A resumed run must find the data, the classes and the teacher that it was started with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASS_NAMES, RunCli, write_folder
from PIL import Image
from tiny_models import save_tiny_model
from tiny_runs import aicsd, distill_command, files_below, same_weights, stopping_at

from aicsd.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, data, a finished run, and the same run cut at step 3 of 4."""
    place = tmp_path_factory.mktemp("inputs")
    write_folder(place / "data", {"train": 8, "val": 2})
    save_tiny_model(place / "teacher.safetensors")
    command = distill_command(
        place / "data",
        place / "teacher.safetensors",
        place / "whole",
        "--method",
        "kd",
        "--epochs",
        "2",
    )
    aicsd(*command)
    shutil.copytree(place / "whole", place / "cut")
    for name in ("metrics.json", "model.safetensors", "report.html"):
        (place / "cut" / name).unlink()
    shutil.rmtree(place / "cut" / "checkpoints")
    with stopping_at(3), pytest.raises(SystemExit) as stopped:
        main(["distill", "--run", str(place / "cut"), "--resume"])
    assert stopped.value.code == 130
    return place


@pytest.fixture
def own(place: Path, tmp_path: Path) -> Path:
    """A copy of everything that a test may change."""
    shutil.copytree(place, tmp_path / "own")
    return tmp_path / "own"


def resume(own: Path, run_cli: RunCli, *more: object) -> tuple[int, str, str]:
    return run_cli("distill", "--run", own / "cut", "--resume", "--data.root", own / "data",
                   "--teacher", own / "teacher.safetensors", *more)  # fmt: skip


def exchange_classes(own: Path) -> None:
    first, *rest = CLASS_NAMES
    (own / "data" / "classes.txt").write_text("\n".join([*rest, first]) + "\n")


def remove_images(own: Path) -> None:
    for name in ("000", "001", "002", "003"):
        for kind in ("images", "masks"):
            (own / "data" / kind / "train" / f"{name}.png").unlink()


def rename_image(own: Path) -> None:
    for kind in ("images", "masks"):
        folder = own / "data" / kind / "val"
        (folder / "000.png").rename(folder / "other.png")


def replace_masks(own: Path) -> None:
    for path in (own / "data" / "masks" / "train").iterdir():
        Image.fromarray(np.full((48, 64), 2, np.uint8)).save(path)


def replace_teacher(own: Path) -> None:
    from aicsd.models import load_model, save_model

    teacher = load_model(own / "teacher.safetensors")
    teacher.net.get_parameter("classifier.bias").data += 0.25
    save_model(teacher, own / "teacher.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            exchange_classes,
            "was started with the classes ['ground', 'disc', 'bar'], and the data "
            "has ['disc', 'bar', 'ground'] now",
        ),
        (remove_images, "was started with 8 train images, and there are 4 now"),
        (rename_image, "was started with other val images"),
        (replace_masks, "was started with other labels of the train images"),
        (replace_teacher, "was started with another teacher"),
    ],
)
def test_other_inputs_are_refused(
    own: Path, run_cli: RunCli, change: Callable[[Path], None], words: str
) -> None:
    change(own)
    before = dict(files_below(own / "cut"))
    code, output, error = resume(own, run_cli)
    assert (code, output) == (2, "")
    assert error.startswith(f"aicsd: error: resume: {own / 'cut'} {words}")
    assert error.count("\n") == 1
    assert dict(files_below(own / "cut")) == before


def test_data_and_teacher_that_have_moved_are_accepted(
    place: Path, own: Path, run_cli: RunCli
) -> None:
    assert str(place) in (own / "cut" / "config.yaml").read_text()
    code, _, error = resume(own, run_cli)
    assert code == 0, error
    assert same_weights(own / "cut", place / "whole")


def test_another_number_of_batches_is_refused(own: Path, run_cli: RunCli) -> None:
    """An example are processes that torchrun starts, which no setting counts."""
    inputs = json.loads((own / "cut" / "inputs.json").read_text())
    inputs["epoch_batches"] = 7
    (own / "cut" / "inputs.json").write_text(json.dumps(inputs))
    code, _, error = resume(own, run_cli)
    assert code == 2
    assert "was started with 7 batches an epoch for each process, and now has 2" in error


def test_a_run_of_a_version_without_fingerprints_resumes(
    place: Path, own: Path, run_cli: RunCli
) -> None:
    """It can only compare the path of the teacher."""
    (own / "cut" / "inputs.json").unlink()
    code, _, error = resume(own, run_cli)
    assert code == 2
    assert "teacher was" in error
    code, _, error = run_cli("distill", "--run", own / "cut", "--resume")
    assert code == 0, error
    assert same_weights(own / "cut", place / "whole")
    assert (own / "cut" / "inputs.json").is_file()


def test_a_damaged_fingerprint_is_refused_in_one_line(own: Path, run_cli: RunCli) -> None:
    for content in ("", "[1]", "{}"):
        (own / "cut" / "inputs.json").write_text(content)
        code, _, error = resume(own, run_cli)
        assert code == 2
        assert error.count("\n") == 1
