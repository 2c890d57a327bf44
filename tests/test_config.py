"""What a resumed run may change and what it may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aicsd.config import compare_resumed, save_config
from aicsd.engine import DistillConfig
from aicsd.errors import UserError


def test_another_teacher_would_change_the_result(tmp_path: Path) -> None:
    config = DistillConfig(run=str(tmp_path), teacher="runs/a")
    save_config(config, tmp_path)
    compare_resumed(replace(config, resume=True, log_every=1), tmp_path)
    with pytest.raises(UserError, match="teacher was 'runs/a' and now is 'runs/b'"):
        compare_resumed(replace(config, teacher="runs/b"), tmp_path)
