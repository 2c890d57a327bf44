"""``--teacher_runtime``: every runtime trains the same student, or says in a line why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RunCli, write_folder
from tiny_runs import NO_REPORT, aicsd, distill_command, train_command, train_lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runtime")
    write_folder(root / "data")
    aicsd(*train_command(root / "data", root / "teacher", "--epochs", 1, *NO_REPORT))
    return root


def distil(place: Path, run_cli: RunCli, runtime: str, *more: object) -> tuple[int, str]:
    command = distill_command(place / "data", place / "teacher", place / runtime, "--epochs", 1)
    code, _, error = run_cli(*command, *NO_REPORT, "--teacher_runtime", runtime, *more)
    return code, error


def test_openvino_trains_the_student_that_eager_trains(place: Path, run_cli: RunCli) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    for runtime in ("eager", "openvino"):
        code, error = distil(place, run_cli, runtime)
        assert code == 0, error
    ours, theirs = (train_lines(place / runtime) for runtime in ("openvino", "eager"))
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        for term in ("loss/pixel_kd", "loss/icsd", "loss/cross_entropy"):
            assert one[term] == pytest.approx(other[term], rel=1e-3), term
    assert "teacher_runtime: openvino" in (place / "openvino" / "config.yaml").read_text()


@pytest.mark.parametrize("method", ["ad", "sp"])
def test_openvino_has_no_features(place: Path, run_cli: RunCli, method: str) -> None:
    run = place / f"refused_{method}"
    code, error = distil(place, run_cli, "openvino", "--method", method, "--run", run)
    assert code == 2
    assert "compares the feature" in error
    assert "use eager or compiled" in error
    assert error.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_without_instructions_is_told_of(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    data = write_folder(tmp_path / "data")
    command = train_command(
        data, tmp_path / "run", "--epochs", 1, "--precision", "bf16-mixed", *NO_REPORT
    )
    code, _, error = run_cli(*command)
    assert code == 0, error
    assert ("bf16-mixed will be many times slower" in error) != has_instructions


def test_a_run_of_a_version_without_the_key_resumes(place: Path, run_cli: RunCli) -> None:
    run = place / "older"
    command = distill_command(place / "data", place / "teacher", run, "--epochs", 1, *NO_REPORT)
    assert run_cli(*command)[0] == 0
    config = run / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "teacher_runtime" not in line))
    assert "teacher_runtime" not in config.read_text()
    code, _, error = run_cli(*command, "--resume")
    assert code == 0, error
    code, _, error = run_cli(*command, "--resume", "--teacher_runtime", "compiled")
    assert code == 2
    assert "teacher_runtime was 'eager' and now is 'compiled'" in error
