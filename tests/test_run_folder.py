"""Run folders: what a resumed run may change, and what is read of a finished one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RunCli
from tiny_runs import train_command

from aicsd.errors import UserError
from aicsd.files import read_json_lines, read_yaml_mapping
from aicsd.run_config import DistillConfig
from aicsd.runs import RunFolder

RESULT = {
    "miou": 0.5,
    "class_accuracy": 0.6,
    "images": 4,
    "parameters": 10,
    "per_class_iou": {"sky": 0.5},
}


def finished(path: Path, **keys: Any) -> RunFolder:
    """A finished run without a model."""
    folder = RunFolder(path)
    folder.save_config(asdict(DistillConfig(run=str(path), **keys)))
    folder.result.write_text(json.dumps(RESULT))
    return folder


def test_another_teacher_would_change_the_result(tmp_path: Path) -> None:
    config = DistillConfig(run=str(tmp_path), teacher="runs/a")
    folder, defaults = RunFolder(tmp_path), asdict(DistillConfig(run=""))
    folder.save_config(asdict(config))
    folder.check_settings(asdict(replace(config, resume=True, log_every=1)), defaults)
    with pytest.raises(UserError, match="teacher was 'runs/a' and now is 'runs/b'"):
        folder.check_settings(asdict(replace(config, teacher="runs/b")), defaults)


def test_a_run_from_before_a_key_was_renamed_can_be_resumed(tmp_path: Path) -> None:
    folder, settings = RunFolder(tmp_path), asdict(DistillConfig(run=str(tmp_path)))
    old = {key: value for key, value in settings["student"].items() if key != "released_layout"}
    folder.save_config({**settings, "student": {**old, "published_layout": False}})
    folder.check_settings(settings, settings)
    folder.save_config({**settings, "student": {**old, "published_layout": True}})
    with pytest.raises(UserError, match=r"student\.released_layout was True and now is False"):
        folder.check_settings(settings, settings)


def test_a_teacher_is_kept_as_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = finished(tmp_path / "run", teacher="teacher")
    assert folder.teacher() == str(tmp_path / "teacher")
    # a name that is no path stays as it is
    assert finished(tmp_path / "other", teacher="hf:ada/small").teacher() == "hf:ada/small"


def test_the_config_of_a_resumed_run_starts_a_new_one(tmp_path: Path) -> None:
    assert finished(tmp_path / "run", resume=True).read_config()["resume"] is False


def test_the_network_of_an_old_run_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.model.name == "model.safetensors"
    (tmp_path / "student.safetensors").touch()
    assert folder.model.name == "student.safetensors"
    (tmp_path / "model.safetensors").touch()
    assert folder.model.name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.json", b"", "is damaged"),
        ("metrics.json", b"[1]", "must be a mapping"),
        ("metrics.json", b"\xff\xfe", "is damaged"),
        ("metrics.json", b"[" * 100_000, "nested too deeply"),
        ("metrics.json", b"1" * 5000, "is damaged"),
        ("metrics.json", b"{}", "has no class_accuracy"),
        ("config.yaml", b"", "must be a mapping"),
        ("config.yaml", b"\xff\xfe", "is damaged"),
        ("config.yaml", b"[" * 5000, "nested too deeply"),
        ("config.yaml", b"seed: 0\nepochs: 7\n", "data is missing"),
        ("config.yaml", b"seed: 0\nseed: 1\n", "line 2, is damaged: the key 'seed' appears twice"),
        ("config.yaml", b"a: &a [1]\nb: *a\n", "line 2, is damaged: aliases are not allowed"),
        ("metrics.jsonl", b"\xff\xfe\n", "is damaged"),
        ("metrics.jsonl", b"[1]\n", "must be a mapping"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = finished(tmp_path / "run")
    (folder.path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        folder.read()
    assert words in str(refused.value)
    assert str(folder.path / name) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 500 + len(str(folder.path))


def test_aliases_cannot_grow_without_end(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(["a0: &a0 [x]", *levels]))
    with pytest.raises(UserError, match="aliases are not allowed"):
        read_yaml_mapping(tmp_path / "bomb.yaml")
    (tmp_path / "bomb.yaml").write_text("a: &a {b: *a}")
    with pytest.raises(UserError, match="aliases are not allowed"):
        read_yaml_mapping(tmp_path / "bomb.yaml")


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]


# who may write into a run folder


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    with suppress(ZeroDivisionError), folder.claim(resume=False):
        assert folder.path.is_dir()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with folder.claim(resume=False):
        folder.report.write_text("kept")
    assert [path.name for path in folder.path.iterdir()] == ["report.html"]


def test_a_second_training_in_one_folder_is_refused(
    tmp_path: Path, tiny_folder: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    with RunFolder(run).claim(resume=False):
        code, _, error = run_cli(*train_command(tiny_folder, run))
    assert code == 2
    assert error.startswith(f"aicsd: error: run: {run} is in use by another training (process ")
    assert error.count("\n") == 1
    assert not run.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind on Windows")
def test_a_folder_is_held_until_its_process_ends(tmp_path: Path) -> None:
    """Although a loader process of a killed training may live on for some seconds."""
    folder = finished(tmp_path / "run")
    hold = (
        "import os, sys, time\nfrom aicsd.runs import RunFolder\n"
        "with RunFolder(sys.argv[1]).claim(resume=True):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder.path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with (
                pytest.raises(UserError, match=f"in use by another training .process {holder.pid}"),
                folder.claim(resume=True),
            ):
                pass
            holder.kill()
            holder.wait()
            with folder.claim(resume=True):  # the child is still there
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    folder.checkpoint.parent.mkdir()
    half = [
        folder.path / ".model.safetensors.4321.tmp.safetensors",
        folder.checkpoint.with_name(".last.pt.4321.tmp.pt"),
    ]
    own = folder.path / ".notes.tmp"
    for path in (*half, own):
        path.write_text("half")
    with folder.claim(resume=True):
        assert not any(path.exists() for path in half)
    assert own.exists()
    # a run that was killed while it wrote its first file can be started again
    new = RunFolder(tmp_path / "new")
    new.path.mkdir()
    (new.path / ".config.yaml.4321.tmp.yaml").write_text("half")
    with new.claim(resume=False):
        pass
    assert not list(new.path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"run: cannot write to .*file/run: Not a directory"),
        RunFolder(tmp_path / "file" / "run").claim(resume=False),
    ):
        pass


def test_what_a_run_is_called(tmp_path: Path) -> None:
    alone, other = (finished(tmp_path / name, method=name) for name in ("none", "icsd"))
    assert (alone.read().title, alone.read().is_alone) == ("student alone", True)
    assert (other.read().title, other.read().is_alone) == ("student ICSD", False)
    config = yaml.safe_load(alone.config.read_text())
    config["model"] = config.pop("student")
    alone.config.write_text(yaml.safe_dump(config))
    assert (alone.read().title, alone.read().command) == ("none", "train")
