"""--resume of finished, damaged, moved and prolonged runs; the same seed, the same weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import RunCli
from resumed import assert_like_reference, small_command, without
from tiny_runs import files_below, same_weights, stopping_at, train_lines

from aicsd.runs import RunFolder


@pytest.fixture(scope="module")
def root(small_reference: Path) -> Path:
    return small_reference.parent / "data"


def test_finished_run_returns_at_once(
    small_reference: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    before = dict(files_below(run))
    monkeypatch.setattr("aicsd.engine.run_batches.train_loader", None)
    monkeypatch.setattr("aicsd.engine.record.evaluate", None)
    code, output, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    miou = json.loads((run / "metrics.json").read_text())["miou"]
    assert f"val mIoU {miou:.4f}" in output
    after = dict(files_below(run))
    before.pop("config.yaml"), after.pop("config.yaml")
    assert after == before


@pytest.mark.parametrize("repeated", [False, True], ids=["bare", "settings_repeated"])
@pytest.mark.parametrize("command", ["train", "distill"])
def test_resume_of_what_is_no_run(
    root: Path, tmp_path: Path, run_cli: RunCli, command: str, repeated: bool
) -> None:
    """A misspelt name, or a folder with other things in it, starts nothing."""
    before = list(files_below(root))
    for folder in (tmp_path / "tpyo", root):
        flags = small_command(root, folder)[1:] if repeated else ["--run", str(folder)]
        if command == "distill":
            flags = [flag.replace("--model", "--student") for flag in flags]
        code, output, error = run_cli(command, *flags, "--resume")
        assert (code, output) == (2, "")
        assert error == (
            f"aicsd: error: resume: there is no run in {folder} (no config.yaml); name "
            "the folder of a run, or leave out --resume to start one\n"
        )
    assert not (tmp_path / "tpyo").exists()
    assert list(files_below(root)) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--run={}", "--resume"],
        ["--resume", "--run", "{}"],
        ["--run", "{}", "--resume=true"],
        ["--run", "{}", "--resume", "true"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_forms_of_resume(
    small_reference: Path, tmp_path: Path, run_cli: RunCli, flags: list[str]
) -> None:
    """The run knows its settings; none has to be repeated."""
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    code, output, error = run_cli("train", *(flag.format(run) for flag in flags))
    assert code == 0, error
    assert output.startswith(f"{run}: val mIoU ")
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors"),
        (lambda run: (run / "model.safetensors").write_bytes(b"broken"), "model.safetensors"),
        (lambda run: (run / "metrics.json").write_text("{"), "metrics.json is damaged"),
    ],
    ids=["model_missing", "model_broken", "result_broken"],
)
def test_a_damaged_result_is_made_again(
    small_reference: Path,
    tmp_path: Path,
    run_cli: RunCli,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    damage(run)
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert f"{words}" in error
    assert error.count("it is made again from the checkpoint") == 1
    assert same_weights(run, small_reference)
    results = [json.loads((path / "metrics.json").read_text()) for path in (run, small_reference)]
    assert without(results[0], "seconds") == without(results[1], "seconds")


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(
    small_reference: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    shutil.rmtree(run / "checkpoints")
    engine = sys.modules["aicsd.engine.fit"]
    monkeypatch.setattr(engine, "train_step", None)
    assert run_cli("train", "--run", run, "--resume")[0] == 0
    (run / "report.html").unlink()
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert (run / "report.html").is_file()
    assert same_weights(run, small_reference)
    code, _, error = run_cli("train", "--run", run, "--resume", "--epochs", "3")
    assert code == 2
    assert "has no checkpoint to go on from for 3 epochs" in error
    (run / "model.safetensors").write_bytes(b"broken")
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 2
    assert "no checkpoint is left to make it again from" in error


def test_a_finished_run_goes_on_for_more_epochs(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    run_cli: RunCli,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        shutil.copytree(small_reference, run)
    code, _, error = run_cli("train", "--run", whole, "--resume", "--epochs", "4")
    assert code == 0, error
    assert "whole: continues to 4 epochs: from here on the learning rate" in error
    assert [line["step"] for line in train_lines(whole)] == list(range(1, 17))
    # the learning rate of step 9 of 16, as the schedule of the whole run has it
    before, after = train_lines(whole)[7:9]
    assert before["lr"] < after["lr"] == pytest.approx(0.007 * 0.5**0.9)
    assert yaml.safe_load((whole / "config.yaml").read_text())["epochs"] == 4
    assert not same_weights(whole, small_reference)
    # cut and resumed it is the same, and needs no word about epochs any more
    with stopping_at(11):
        assert run_cli("train", "--run", cut, "--resume", "--epochs", "4")[0] == 130
    assert not (cut / "metrics.json").exists()
    code, _, error = run_cli("train", "--run", cut, "--resume")
    assert code == 0, error
    assert_like_reference(cut, whole)
    # it is not what four epochs from the start come to
    for run in (whole, cut):
        assert RunFolder(run).resumed_from == {"epochs": "2"}
    assert RunFolder(small_reference).resumed_from == {}
    code, _, error = run_cli("reproduce", whole)
    assert (code, "went on with other settings than before (epochs 2)" in error) == (2, True)
    code, _, error = run_cli("train", "--run", cut, "--resume", "--epochs", "3")
    assert code == 2
    assert "epochs was 4 and now is 3" in error


def test_harmless_settings_may_change(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    run_cli: RunCli,
) -> None:
    """Moved run, moved data, other workers, other bookkeeping."""
    with stopping_at(3):
        assert run_cli(*small_command(root, tmp_path / "run"))[0] == 130
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(root, tmp_path / "moved_data")
    code, _, error = run_cli(
        "train", "--run", tmp_path / "moved", "--resume", "--data.root", tmp_path / "moved_data",
        "--data.workers", "1", "--save_every", "2",
    )  # fmt: skip
    assert code == 0, error
    assert_like_reference(tmp_path / "moved", small_reference)


def test_resume_in_python(root: Path, small_reference: Path, tmp_path: Path) -> None:
    import aicsd as package
    from aicsd.config import build_config
    from aicsd.engine.stop import Interrupted
    from aicsd.run_config import TrainConfig

    settings = yaml.safe_load((small_reference / "config.yaml").read_text())
    settings |= {"run": str(tmp_path / "run")}
    assert build_config(TrainConfig, settings).epochs == 2
    with stopping_at(5), pytest.raises(Interrupted, match="step 5 of 8"):
        package.train(**settings)
    run = package.train(**{**settings, "resume": True})
    assert_like_reference(run.path, small_reference)


def test_same_seed_same_weights(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    for seed in (0, 1):
        code, _, error = run_cli(*small_command(root, tmp_path / str(seed), "--seed", seed))
        assert code == 0, error
    assert_like_reference(tmp_path / "0", small_reference)
    assert not same_weights(tmp_path / "1", small_reference)


def test_workers_do_not_change_the_weights(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    code, _, error = run_cli(*small_command(root, run, "--data.workers", "2"))
    assert code == 0, error
    assert_like_reference(run, small_reference)
