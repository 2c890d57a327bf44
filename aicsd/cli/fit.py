"""aicsd train, aicsd distill."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from aicsd.config import ConfigParser, config_from_namespace, config_parser

TRAIN_HELP = "train a network on labels alone: a teacher, or a student without one"
DISTILL_HELP = "distil a teacher into a student"


def build_train_parser() -> ConfigParser:
    from aicsd.engine.config import TrainConfig

    return config_parser(TrainConfig)


def build_distill_parser() -> ConfigParser:
    from aicsd.engine.config import DistillConfig

    return config_parser(DistillConfig)


def run_train(options: Any) -> int:
    from aicsd.engine.config import TrainConfig
    from aicsd.engine.run import run_training

    return _run(lambda: run_training(config_from_namespace(TrainConfig, options)))


def run_distill(options: Any) -> int:
    from aicsd.engine.config import DistillConfig
    from aicsd.engine.run import run_distillation

    return _run(lambda: run_distillation(config_from_namespace(DistillConfig, options)))


def _run(training: Callable[[], Any]) -> int:
    from aicsd.engine.stop import Interrupted

    try:
        run = training()
    except Interrupted as stop:
        print(f"aicsd: {stop}; go on with --resume", file=sys.stderr)
        return 130
    print(f"{run.path}: val mIoU {run.metrics['miou']:.4f}, "
          f"{run.metrics['parameters'] / 1e6:.2f} M parameters, "
          f"{run.metrics['seconds']:.0f} s of training")  # fmt: skip
    return 0
