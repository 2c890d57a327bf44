"""Print the effect of ``numerics: released`` on seeded synthetic maps.

    python scripts/numerics_example.py

prints, for every term, its value as described and as released, and how the two gradients on the
student's map compare: ratio of their L2 norms (released / described) and cosine of their angle.
Then what the two parts of the released ICS matrix are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses import (
    attention_loss,
    correlation_loss,
    cross_entropy_loss,
    ics_matrix,
    icsd_loss,
    pairwise_loss,
    pixel_kd_loss,
)
from aicsd.losses._numerics import Numerics
from aicsd.losses.icsd import released_ics_matrix

BATCH, CLASSES, SIDE, DEEP_SIDE = 6, 21, 64, 16
STUDENT_CHANNELS, TEACHER_CHANNELS = 64, 256
NUMERICS: tuple[Numerics, ...] = ("described", "released")
Term = Callable[[Tensor, Numerics], Tensor]


def smooth_maps(channels: int, side: int, generator: torch.Generator) -> Tensor:
    """(B, channels, side, side): blobs of an eighth of the side, and a little noise."""
    coarse = 3 * torch.randn(BATCH, channels, 8, 8, generator=generator)
    fine = 0.3 * torch.randn(BATCH, channels, side, side, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True) + fine


def make_terms(padded: bool) -> dict[str, tuple[Tensor, Term]]:
    """The student's map and the loss on it, by term; ``padded``: a quarter lies outside."""
    generator = torch.Generator().manual_seed(0)
    teacher = smooth_maps(CLASSES, SIDE, generator)
    student = 0.6 * teacher + 0.6 * smooth_maps(CLASSES, SIDE, generator)
    decoder = [smooth_maps(d, SIDE, generator) for d in (STUDENT_CHANNELS, TEACHER_CHANNELS)]
    aspp = [smooth_maps(d, DEEP_SIDE, generator) for d in (STUDENT_CHANNELS, TEACHER_CHANNELS)]
    mask = teacher.argmax(dim=1)
    valid = torch.ones(BATCH, SIDE, SIDE, dtype=torch.bool)
    if padded:
        valid[:, 3 * SIDE // 4 :] = False
        mask[~valid] = 255
        for maps in (student, teacher, *decoder, *aspp):  # networks are nearly constant there
            maps[:, :, 3 * maps.shape[2] // 4 :] = 0.5
    on_logits: dict[str, Callable[..., Tensor]] = {
        "pixel_kd": pixel_kd_loss,
        "icsd": icsd_loss,
        "correlation": correlation_loss,
    }
    on_features: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "attention": (attention_loss, decoder),
        "pairwise": (pairwise_loss, aspp),
    }

    def with_teacher(loss: Callable[..., Tensor], target: Tensor) -> Term:
        return lambda z, n: loss(z, target, numerics=n, valid=valid)

    return {
        "cross_entropy": (student, lambda z, n: cross_entropy_loss(z, mask, numerics=n)),
        **{name: (student, with_teacher(loss, teacher)) for name, loss in on_logits.items()},
        **{
            name: (maps[0], with_teacher(loss, maps[1]))
            for name, (loss, maps) in on_features.items()
        },
    }


def compare(maps: Tensor, term: Term) -> tuple[float, float, float, float]:
    """Value described, value released, ratio of the gradients' norms, cosine of their angle."""
    values, gradients = [], []
    for numerics in NUMERICS:
        leaf = maps.double().requires_grad_()
        value = term(leaf, numerics)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, leaf)[0].flatten())
    ratio = (gradients[1].norm() / gradients[0].norm()).item()
    first, second = gradients
    return values[0], values[1], ratio, F.cosine_similarity(first, second, dim=0).item()


def released_parts(logits: Tensor) -> tuple[Tensor, Tensor, float]:
    """Entropy part (C,) and product part (C, C) of the released matrix before normalisation, and
    the part of the matrix's squared size that is left when entropies alone make it."""
    q = logits.double().softmax(dim=2)
    entropy = (q * q.log()).sum(dim=(0, 2, 3)) / len(q)
    products = torch.einsum("bihw,bjhw->ij", q, q) / len(q)
    classes = torch.arange(logits.shape[1])
    alone = F.normalize(entropy[torch.maximum(classes[:, None], classes)], dim=1)
    released = released_ics_matrix(logits.double())
    rest = (released - alone).square().sum() / released.square().sum()
    return entropy, products, rest.item()


def radial_part(numerics: Numerics) -> float:
    """Part of the squared gradient of ``pairwise`` on 2 x 2 nodes that lies along the nodes."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        F.max_pool2d(smooth_maps(channels, DEEP_SIDE, generator), DEEP_SIDE // 2).double()
        for channels in (STUDENT_CHANNELS, TEACHER_CHANNELS)
    )
    student.requires_grad_()
    patch = None if numerics == "released" else 1
    loss = pairwise_loss(student, teacher, patch=patch, numerics=numerics)
    (gradient,) = torch.autograd.grad(loss, student)
    along = (gradient * F.normalize(student.detach(), dim=1)).sum(dim=1).square().sum()
    return (along / gradient.square().sum()).item()


def main() -> None:
    print("| padding | term | described | released | gradient norm, ratio | gradient, cosine |")
    print("| --- | --- | --- | --- | --- | --- |")
    for padded in (False, True):
        for name, (maps, term) in make_terms(padded).items():
            described, released, ratio, cosine = compare(maps, term)
            print(
                f"| {'a quarter' if padded else 'none'} | {name} | {described:.3g} "
                f"| {released:.3g} | {ratio:.3g} | {cosine:.3f} |"
            )
    logits, _ = make_terms(padded=False)["icsd"]
    entropy, products, rest = released_parts(logits)
    print(
        f"\nreleased ICS matrix: entropy part {entropy.min():.1f} to {entropy.max():.1f}, "
        f"product part {products.min():.2f} to {products.max():.2f}; entropies alone leave "
        f"{rest:.1e} of its squared size"
    )
    matrix = ics_matrix(logits.double()).mean(dim=0)
    low, high = matrix[matrix > 0].min(), matrix.max()
    print(f"described ICS matrix: {low:.2f} to {high:.2f} nats")
    parts = [f"{numerics} {100 * radial_part(numerics):.1f} %" for numerics in NUMERICS]
    print(f"pairwise gradient that only changes the length of a node: {', '.join(parts)}")


if __name__ == "__main__":
    main()
