"""A run whose terms hold adapters, generators, a memory and a critic goes on as if never cut."""

from __future__ import annotations

from pathlib import Path

from conftest import RunCli, write_folder
from resumed import assert_like_reference
from tiny_models import save_tiny_model
from tiny_runs import NO_REPORT, distill_command, stopping_at

TERMS = """
terms:
  cross_entropy: {}
  holistic: {weight: 0.1}
  cross_image_memory: {weight: 0.1, at: aspp, adapter: mlp}
  masked_generative: {weight: 1, at: aspp}
  margin_features: {weight: 1, at: decoder, adapter: conv1x1_bn}
  refined_features: {weight: 1, at: stage4}
"""


def test_what_terms_hold_is_resumed(tmp_path: Path, run_cli: RunCli) -> None:
    root = write_folder(tmp_path / "data")
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    (tmp_path / "terms.yaml").write_text(TERMS)

    def command(name: str) -> list[str]:
        flags = ("--method", tmp_path / "terms.yaml", "--epochs", 2, *NO_REPORT)
        return distill_command(root, teacher, tmp_path / name, *flags)

    assert run_cli(*command("whole"))[0] == 0
    with stopping_at(3):
        assert run_cli(*command("cut"))[0] == 130
    code, _, error = run_cli("distill", "--run", tmp_path / "cut", "--resume")
    assert code == 0, error
    assert_like_reference(tmp_path / "cut", tmp_path / "whole")
