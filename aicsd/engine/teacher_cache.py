"""Which methods a teacher cache can serve."""

from __future__ import annotations

from aicsd.errors import UserError
from aicsd.methods import Recipe


def check_recipe(recipe: Recipe, top_k: int) -> None:
    """Refuse a method that compares more than a cache keeps.

    Raises:
        UserError: a term on features, one that reads padding, or, with ``top_k``, one that needs
            every logit.
    """
    cure = "leave teacher_cache out, or choose another method"
    recipe.require("logits", "teacher_cache holds logits", cure)
    for name, term in recipe.active.items():
        reads_padding = "valid" not in term.contract.inputs
        if term.needs_teacher and (reads_padding or term.options.get("numerics") == "released"):
            raise UserError(
                f"teacher_cache holds nothing about padding, and term {name!r} compares it too: "
                "leave teacher_cache out"
            )
    if top_k:
        who = f"the {top_k} largest of a pixel"
        recipe.require("probabilities", who, "leave teacher_cache_top_k out")
