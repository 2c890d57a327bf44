"""Weights of the classes in terms on labels, given or from the pixels of the training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count

Rule = Literal["balanced", "sqrt_balanced", "log_balanced"]
"""Rules for weights from the share f_c of class c in the labelled pixels: 1 / f_c, its
square root, or 1 / ln(1.02 + f_c) (Paszke et al., ENet, arXiv 1606.02147; the released code)."""

LOG_SHIFT = 1.02


def check_class_weights(weights: object) -> None:
    """Refuse invalid class weights.

    Raises:
        UserError: an unknown rule, or numbers that are negative, not finite or all 0.
    """
    if weights is None or weights in get_args(Rule):
        return
    allowed = f"{', '.join(get_args(Rule))} or a list of numbers"
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise UserError(f"class_weights is {weights!r}; allowed are {allowed}")
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights)
    if not numbers or not all(0 <= w < math.inf for w in weights) or not any(weights):
        raise UserError(
            f"class_weights is {list(weights)!r}; a list holds one number of 0 or above for each "
            f"class (allowed are {allowed})"
        )


def weights_from_pixels(rule: Rule, pixels: Sequence[int]) -> list[float]:
    """One weight for each class; 0 for a class without a pixel.

    Args:
        rule: rule for weights from shares.
        pixels: labelled pixels of every class in the training data.
    """
    total = sum(pixels)
    shares = [count / total if total else 0.0 for count in pixels]
    if rule == "log_balanced":
        return [1 / math.log(LOG_SHIFT + share) if share else 0.0 for share in shares]
    inverse = [1 / (share * len(shares)) if share else 0.0 for share in shares]
    return [math.sqrt(w) for w in inverse] if rule == "sqrt_balanced" else inverse


def weights_like(weights: Sequence[float] | Tensor | None, logits: Tensor) -> Tensor | None:
    """(C,) in the precision of the logits (B, C, H, W).

    Raises:
        UserError: another number of weights than of classes.
    """
    if weights is None:
        return None
    weights = torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
    if weights.shape != logits.shape[1:2]:
        raise UserError(
            f"class_weights has {weights.numel()} weights, and the logits {tuple(logits.shape)} "
            f"have {logits.shape[1]} classes"
        )
    return weights


def total_weight(
    weights: Tensor | None, mask: Tensor, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """The weights of all labelled pixels, of all processes, in a number above 0."""
    labelled = mask != ignore_index
    if weights is None:
        return shared_count(labelled.sum())
    found = weights[mask.long().masked_fill(~labelled, 0)].masked_fill(~labelled, 0)
    return shared_count(found.sum(), torch.finfo(dtype).tiny)


@dataclass(eq=False, repr=False)
class ClassWeightedLoss(LossModule):
    """A loss on labels whose classes can have weights.

    Args:
        class_weights: one number for each class; or ``balanced``, ``sqrt_balanced`` or
            ``log_balanced``, see :data:`Rule`; None weighs all alike.
        class_pixels: labelled pixels of each class in the training data, for these words; a
            training fills them in.
    """

    _: KW_ONLY
    class_weights: Rule | list[float] | None = None
    class_pixels: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_class_weights(self.class_weights)

    @property
    def needs_class_pixels(self) -> bool:
        """Whether the weights follow from the training data."""
        return isinstance(self.class_weights, str)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name, with the weights as numbers.

        Raises:
            UserError: weights that follow from the data, whose pixels are not known.
        """
        kept = {key: value for key, value in super().settings.items() if key != "class_pixels"}
        if isinstance(self.class_weights, str):
            if self.class_pixels is None:
                raise UserError(
                    f"class_weights is {self.class_weights!r}, which needs class_pixels, the "
                    "labelled pixels of each class in the training data"
                )
            weights = weights_from_pixels(self.class_weights, self.class_pixels)
            kept["class_weights"] = weights
        return kept

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in super().settings.items())
