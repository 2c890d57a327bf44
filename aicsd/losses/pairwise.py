"""Pair-wise similarity of pixels (Liu et al., SKD, CVPR 2019, arXiv 1903.04197), the method SP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import prepare_pair, valid_pixels, without_autocast
from aicsd.losses._module import LossModule
from aicsd.losses._numerics import Numerics, check_numerics

NODE_NORM_FLOOR = 1e-6
RELEASED_NORM_SHIFT = 1e-8


def pairwise_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    patch: int | None = None,
    numerics: Numerics = "described",
    valid: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the cosines between all pairs of nodes of an image.

    L_SP = 1/B sum_b 1/n_b^2 sum_mn (A^T_mn - A^S_mn)^2, A_mn = f_m . f_n / (||f_m|| ||f_n||), where
    the n_b nodes of image b are the means of its features over squares of ``patch`` pixels.

    Args:
        student: (B, D, H, W) features, or logits (B, C, H, W); the only input that gets a gradient.
        teacher: (B, D', H, W); the number of channels may differ.
        patch: side of these squares in pixels of the map, 1 or more; the last row and column may be
            narrower. 0 halves the map, which leaves 2 x 2 nodes (3 along an odd side), as in the
            released code. Default: 2, and 0 with ``released``.
        numerics: ``released`` is the released code instead. It differs in three things: nodes are
            the *maximum* of each channel, over halves of the map (``patch`` 0); ||f|| + 1e-8 is a
            *constant to the gradient*, which then pulls on the length of a node too; and padding
            counts, ``valid`` is ignored.
        valid: (B, H', W') bool; a node is the mean over its pixels inside the image, and one
            without any is left out of the pairs.

    Returns:
        Unweighted scalar >= 0; 0 where the similarities agree. At most 4.

    Raises:
        UserError: another batch or size, a negative patch, or one that the released code does not
            have.
    """
    patch = resolve_patch(patch, numerics)
    student, teacher = prepare_pair(student, teacher, same_channels=False)
    height, width = student.shape[-2:]
    window = (patch or max(1, height // 2), patch or max(1, width // 2))
    if numerics == "released":
        ours, target = (
            _cosines(_released_directions(F.max_pool2d(maps, window, ceil_mode=True)))
            for maps in (student, teacher)
        )
        return (ours - target).square().mean()
    where = valid_pixels(valid, student)
    pair = (maps.masked_fill(~where[:, None], 0.0) for maps in (student, teacher))
    # this divides by all pixels of a square, not by those valid: a direction has no length
    ours, target = (
        _cosines(_directions(F.avg_pool2d(maps, window, ceil_mode=True))) for maps in pair
    )
    is_node = F.max_pool2d(where[:, None].float(), window, ceil_mode=True)
    nodes = is_node.sum(dim=(1, 2, 3)).clamp_min(1)  # (B,)
    # a node outside has direction 0, hence cosine 0, in both networks
    return ((ours - target).square().sum(dim=(1, 2)) / nodes.square()).mean()


def resolve_patch(patch: int | None, numerics: Numerics) -> int:
    """The patch, with its default; a negative or contradicting one is refused."""
    check_numerics(numerics)
    if patch is None:
        return 0 if numerics == "released" else 2
    if patch < 0:
        raise UserError(f"patch is {patch}; it must be 1 or more, or 0 to halve the map")
    check_numerics(numerics, patch=(patch, 0))
    return patch


def _directions(nodes: Tensor) -> Tensor:
    """(B, D, h, w) -> unit vectors along D; a node without length gets 0, and no gradient."""
    norm: Tensor = torch.linalg.vector_norm(nodes, dim=1, keepdim=True)
    return (nodes / norm.clamp_min(NODE_NORM_FLOOR)).masked_fill(norm < NODE_NORM_FLOOR, 0.0)


def _released_directions(nodes: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(nodes, dim=1, keepdim=True).detach()
    return nodes / (norm + RELEASED_NORM_SHIFT)


def _cosines(directions: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h w, h w)."""
    flat = directions.flatten(2)
    with without_autocast(flat):
        return flat.transpose(1, 2) @ flat


@dataclass(eq=False, repr=False)
class PairwiseLoss(LossModule):
    """:func:`pairwise_loss` with its settings kept."""

    patch: int | None = None
    numerics: Numerics = "described"

    needs: ClassVar = "features"
    same_channels: ClassVar = False
    follows_numerics: ClassVar = ("patch",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.patch = resolve_patch(self.patch, self.numerics)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two maps (B, D, H, W), or logits (B, C, H, W) -> scalar."""
        return pairwise_loss(student, teacher, valid=valid, **self.settings)


LOSS = PairwiseLoss
