"""Optimizer with a group for the backbone, one for the head and one for the terms."""

from __future__ import annotations

import torch

from aicsd.distiller import Distiller
from aicsd.run_config import OptimizerConfig
from aicsd.schedules import cosine, poly, warm_up


def build_optimizer(config: OptimizerConfig, distiller: Distiller) -> torch.optim.Optimizer:
    """Every trainable parameter once: backbone, head, and adapters and losses of the terms.

    Each group keeps its starting rate as ``base_lr`` for :func:`set_learning_rate`.
    """
    slow = {id(parameter) for parameter in distiller.student.backbone_parameters()}
    student = [p for p in distiller.student.parameters() if p.requires_grad]
    terms = [p for p in distiller.terms.parameters() if p.requires_grad]
    head_lr = config.lr * config.head_lr_factor
    factor = config.terms_lr_factor
    groups = [
        {"params": [p for p in student if id(p) in slow], "base_lr": config.lr},
        {"params": [p for p in student if id(p) not in slow], "base_lr": head_lr},
    ]
    if terms:
        base_lr = head_lr if factor is None else config.lr * factor
        groups.append({"params": terms, "base_lr": base_lr})
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, progress: float, step: int
) -> float:
    """Rate of every group at ``progress`` in [0, 1] in step ``step``; returns that of the first."""
    factor = cosine(progress) if config.schedule == "cosine" else poly(progress, config.power)
    factor *= warm_up(step, config.warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
