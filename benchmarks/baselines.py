"""What the package is measured against: plain loops and plain PyTorch, independent of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def ics_matrix_by_loop(logits: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, C): the mean over the batch of KL(rho_i || rho_j), one pair at a time."""
    log_rho = logits.flatten(2).log_softmax(dim=2).unbind(dim=1)  # slices would be slower still
    rho = [maps.exp() for maps in log_rho]
    rows = []
    for p in rho:
        row = [F.kl_div(log_q, p, reduction="batchmean") for log_q in log_rho]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def ics_matrix_by_autograd(logits: Tensor) -> Tensor:
    """The same with one matrix product and PyTorch's gradient."""
    log_rho = logits.flatten(2).log_softmax(dim=2)
    rho = log_rho.exp()
    cross = torch.einsum("bip,bjp->bij", rho, log_rho)
    own = torch.einsum("bip,bip->bi", rho, log_rho)
    return (own[:, :, None] - cross).mean(dim=0)


def icsd_by_loop(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        target = F.normalize(ics_matrix_by_loop(teacher), dim=1)
    return (F.normalize(ics_matrix_by_loop(student), dim=1) - target).square().mean()


def icsd_by_autograd(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        target = F.normalize(ics_matrix_by_autograd(teacher), dim=1)
    return (F.normalize(ics_matrix_by_autograd(student), dim=1) - target).square().mean()


def pixel_kd_by_autograd(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p_T || p_S) at every pixel, mean over the pixels."""
    with torch.no_grad():
        log_teacher = teacher.log_softmax(dim=1)
    divergence = log_teacher.exp() * (log_teacher - student.log_softmax(dim=1))
    return divergence.sum(dim=1).mean()


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
