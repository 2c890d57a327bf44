"""Settings of a distillation for scripts that train nothing."""

from __future__ import annotations

from pathlib import Path

from aicsd.config import build_config, merge
from aicsd.files import read_yaml_mapping
from aicsd.run_config import DistillConfig


def read_settings(config: str | Path, root: str | None = None) -> DistillConfig:
    """The settings in a config of ``aicsd distill``.

    Args:
        config: path of the YAML file.
        root: folder of the dataset; None: that of the config.
    """
    keys = {"data": {} if root is None else {"root": root}, "run": "unused"}
    return build_config(DistillConfig, merge(read_yaml_mapping(Path(config)), keys))
