"""Baselines of the measurements: plain loops and plain PyTorch, independent of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from PIL import ImageFilter, ImageOps
from torch import Tensor, nn
from torch.optim import Optimizer

MEAN = np.array((0.485, 0.456, 0.406))
STD = np.array((0.229, 0.224, 0.225))


def pil_training_sample(
    image_file: Path, mask_file: Path, rng: np.random.Generator, base: int = 513, crop: int = 513
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode, mirror, scale the whole image, pad, crop, blur, normalise: the released order."""
    image: PILImage.Image = PILImage.open(image_file).convert("RGB")
    mask: PILImage.Image = PILImage.open(mask_file)
    if rng.random() < 0.5:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    short = int(rng.integers(base // 2, 2 * base, endpoint=True))
    scale = short / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, PILImage.Resampling.BILINEAR)
    mask = mask.resize(size, PILImage.Resampling.NEAREST)
    right, below = max(crop - size[0], 0), max(crop - size[1], 0)
    if right or below:
        image = ImageOps.expand(image, border=(0, 0, right, below), fill=0)
        mask = ImageOps.expand(mask, border=(0, 0, right, below), fill=255)
    left = int(rng.integers(0, image.width - crop, endpoint=True))
    top = int(rng.integers(0, image.height - crop, endpoint=True))
    image = image.crop((left, top, left + crop, top + crop))
    mask = mask.crop((left, top, left + crop, top + crop))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.random()))
    pixels = np.array(image).astype(np.float32)
    pixels /= 255.0
    pixels -= MEAN
    pixels /= STD
    labels = np.array(mask).astype(np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float(), torch.from_numpy(labels).float()


def torchvision_training_sample(
    image_file: Path, mask_file: Path, base: int = 513, crop: int = 513
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same augmentation with torchvision's transforms v2 on uint8 tensors."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional

    image = decode_image(str(image_file), ImageReadMode.RGB)
    mask = torch.from_numpy(np.array(PILImage.open(mask_file)))[None]
    scale = float(torch.empty(()).uniform_(0.5, 2.0)) * base / min(image.shape[1:])
    size = [round(side * scale) for side in image.shape[1:]]
    image = functional.resize(image, size, antialias=True)
    mask = functional.resize(mask, size, functional.InterpolationMode.NEAREST)
    padding = [0, 0, max(crop - size[1], 0), max(crop - size[0], 0)]
    image, mask = functional.pad(image, padding, fill=0), functional.pad(mask, padding, fill=255)
    top = int(torch.randint(0, image.shape[1] - crop + 1, ()))
    left = int(torch.randint(0, image.shape[2] - crop + 1, ()))
    image = functional.crop(image, top, left, crop, crop)
    mask = functional.crop(mask, top, left, crop, crop)
    flip, blur, sigma = torch.rand(3).tolist()
    if flip < 0.5:
        image, mask = functional.horizontal_flip(image), functional.horizontal_flip(mask)
    if blur < 0.5:
        image = functional.gaussian_blur(image, [7, 7], [0.1 + 0.9 * sigma])
    image = functional.to_dtype(image, torch.float32, scale=True)
    return functional.normalize(image, MEAN.tolist(), STD.tolist()), mask[0].long()


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
    """(B, C, H, W) -> (C, C) as the released code has it: one pair of classes at a time."""
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
    """A training step of the released code.

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
    torch.autograd.backward(ce + 9500 * icsd + 10 * kd)
    optimizer.step()
