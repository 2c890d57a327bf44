"""The benchmark of exported models, at tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY_MODEL
from tiny_exports import require_libraries
from tiny_network import CLASSES, tiny_model

from aicsd.formats import coreml, onnx, torch_export
from aicsd.models import ModelConfig, build_model, save_model
from benchmarks.export import export_all, installed, seconds_of


def test_files_are_written_and_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_libraries(onnx.FORMAT, int8=True)
    assert installed(onnx.FORMAT)
    assert not installed(torch_export.FORMAT)  # aicsd does not run its files
    assert installed(coreml.FORMAT) <= coreml.FORMAT.runs()
    monkeypatch.setattr("benchmarks.export.VARIANTS", (("labels, INT8", "labels", True),))
    files = export_all(tiny_model(), tmp_path, [onnx.FORMAT, torch_export.FORMAT], side=64)
    assert list(files) == ["ONNX Runtime: labels, INT8"]
    assert "torch.export, labels, INT8: left out, int8 is for" in capsys.readouterr().err
    plain = tmp_path / "model.safetensors"
    save_model(build_model(ModelConfig(**TINY_MODEL), CLASSES), plain)
    rows = {**files, "eager: labels": plain, "eager: logits": plain}
    found = seconds_of(rows, threads=1, side=64, repeats=1)
    assert list(found) == list(rows)
    assert all(0 < seconds < 60 for seconds in found.values())
    before = files["ONNX Runtime: labels, INT8"].read_bytes()
    assert export_all(tiny_model(seed=9), tmp_path, [onnx.FORMAT], side=64) == files
    assert files["ONNX Runtime: labels, INT8"].read_bytes() == before  # used again
