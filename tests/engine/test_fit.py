"""The loop at its borders: steps that end several epochs, folders beside the run, words for yes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RunCli, write_folder
from tiny_runs import NO_REPORT, aicsd, lines, train_command

from aicsd.engine.sanity import find_headroom
from aicsd.runs import RunFolder


def test_a_step_that_ends_several_epochs_is_validated(tmp_path: Path) -> None:
    """2 batches an epoch and 5 a step: steps end in epochs 2, 5 and 7, of which 3 and 6 count."""
    flags = ("--epochs", "9", "--optimizer.accumulate", "5", "--val_every", "3")
    aicsd(*train_command(write_folder(tmp_path / "data"), tmp_path / "run", *flags, *NO_REPORT))
    logged = lines(tmp_path / "run")
    assert [line["epoch"] for line in logged if "epoch" in line] == [2, 5, 7]
    assert [line["step"] for line in logged if "val/miou" in line] == [2, 3]


def test_a_closed_folder_beside_the_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the system in /tmp is not a run, and no reason to stop."""
    config = RunFolder(runs / "distilled").read_config()
    expected = find_headroom(runs / "distilled", config, 0.9)
    assert expected is not None
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if "teacher" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert find_headroom(runs / "distilled", config, 0.9) == expected


def test_headroom_is_that_of_the_same_images(runs: Path) -> None:
    """A student alone of other images says nothing about this teacher."""
    config = RunFolder(runs / "distilled").read_config()
    assert find_headroom(runs / "distilled", config, 0.9) is not None
    other = {**config, "data": {**config["data"], "root": str(runs)}}
    assert find_headroom(runs / "distilled", other, 0.9) is None
    slash = {**config, "data": {**config["data"], "root": f"{config['data']['root']}/"}}
    assert find_headroom(runs / "distilled", slash, 0.9) is not None


@pytest.mark.parametrize("word", ["true", "True", "yes"])
def test_every_word_for_yes_resumes_with_the_config_of_the_run(
    runs: Path, run_cli: RunCli, word: str
) -> None:
    code, text, error = run_cli("train", "--run", runs / "teacher", "--resume", word)
    assert code == 0, error
    assert "val mIoU" in text
