"""Optimizer with a group for the backbone and one for all the rest."""

from __future__ import annotations

import torch

from aicsd.distiller import Distiller
from aicsd.engine.config import OptimizerConfig
from aicsd.schedules import poly


def build_optimizer(config: OptimizerConfig, distiller: Distiller) -> torch.optim.Optimizer:
    """Every trainable parameter once: the student's backbone at lr, the rest at a multiple.

    Each group keeps its starting rate as ``base_lr`` for :func:`set_learning_rate`.
    """
    slow = {id(parameter) for parameter in distiller.student.backbone_parameters()}
    trainable = [p for p in distiller.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in slow], "base_lr": config.lr},
        {
            "params": [p for p in trainable if id(p) not in slow],
            "base_lr": config.lr * config.head_lr_factor,
        },
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, progress: float, power: float) -> float:
    """Poly schedule on every group; returns the rate of the first."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * poly(progress, power)
    return float(optimizer.param_groups[0]["lr"])
