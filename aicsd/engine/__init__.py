"""Training: the loop, its checkpoints and its logs."""

from aicsd.engine.config import DistillConfig, FitConfig, OptimizerConfig, TrainConfig
from aicsd.engine.fit import fit

__all__ = ["DistillConfig", "FitConfig", "OptimizerConfig", "TrainConfig", "fit"]
