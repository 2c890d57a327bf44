"""What the package is measured against: plain loops and plain PyTorch, independent of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def released_ics_matrix_by_loop(logits: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, C) as the published code has it: one pair of classes at a time."""
    q = logits.softmax(dim=2)  # over the rows of each column
    classes = q.shape[1]
    rows = [[q.new_zeros(())] * classes for _ in range(classes)]
    for i in range(classes):
        for j in range(i, classes):
            rows[i][j] = rows[j][i] = F.kl_div(q[:, i], q[:, j], reduction="batchmean")
    return F.normalize(torch.stack([torch.stack(row) for row in rows]), dim=1)


def released_step(
    student: nn.Module, teacher: nn.Module, image: Tensor, mask: Tensor, optimizer: Optimizer
) -> None:
    """A training step of the published code.

    The teacher is in training mode and inside the graph, so that its gradients are computed too;
    all terms are at the resolution of the input.

    Args:
        student: normalised images -> logits at stride 4.
        teacher: the same.
        image: (B, 3, H, W), normalised.
        mask: (B, H, W) class ids.
        optimizer: of the student.
    """
    student.train()
    teacher.train()
    optimizer.zero_grad()
    ours, theirs = (
        F.interpolate(net(image), size=mask.shape[-2:], mode="bilinear", align_corners=True)
        for net in (student, teacher)
    )
    batch = image.shape[0]
    difference = released_ics_matrix_by_loop(theirs) - released_ics_matrix_by_loop(ours)
    icsd = difference.square().mean() / batch
    kd = F.kl_div(ours.log_softmax(dim=1), theirs.softmax(dim=1), reduction="mean")
    ce = F.cross_entropy(ours, mask, ignore_index=255) / batch
    (ce + 9500 * icsd + 10 * kd).backward()
    optimizer.step()
