"""The terms of a run: which its config names, what a cache of its teacher serves, their data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aicsd.data import survey_dataset
from aicsd.data.protocol import SegDataset
from aicsd.errors import UserError
from aicsd.messages import say
from aicsd.methods import Recipe, load_recipe, make_recipe
from aicsd.methods.contract import Losses
from aicsd.run_config import DistillConfig, FitConfig
from aicsd.runs import LABELS_ALONE


def recipe_of_labels(config: FitConfig, terms: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The complete recipe of a training on labels alone, with the numerics of its protocol.

    Args:
        config: its protocol decides about the numerics.
        terms: options of the cross entropy, and further terms.
    """
    return of_protocol(load_recipe(LABELS_ALONE, terms), config)


def recipe_of(config: DistillConfig, losses: Losses | None = None) -> Recipe:
    """The complete recipe of a distillation, with the numerics of its protocol.

    The config of a run carries all its terms, so that no recipe is read again.
    """
    if config.terms_of is None:
        recipe = load_recipe(config.method, config.terms, losses)
    elif config.terms_of == config.method:
        recipe = make_recipe(Path(config.method).stem, config.terms, losses=losses)
    else:
        raise UserError(
            f"terms are those of method {config.terms_of!r}, and method is {config.method!r}: "
            "remove terms and terms_of from the config"
        )
    return of_protocol(recipe, config)


def of_protocol(recipe: Recipe, config: FitConfig) -> Recipe:
    """``recipe`` with the numerics of the config's protocol."""
    if config.protocol != "released":
        return recipe
    if recipe.without_numerics:
        terms = ", ".join(recipe.without_numerics)
        say(f"note: protocol released leaves {terms} as they are")
    return recipe.with_numerics("released")


def check_cache(recipe: Recipe, top_k: int) -> None:
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
                f"teacher_cache holds nothing about padding, and term {name!r} "
                f"{'' if reads_padding else 'with numerics released '}compares it too: leave "
                "teacher_cache out"
            )
    if top_k:
        who = f"the {top_k} largest of a pixel"
        recipe.require("probabilities", who, "leave teacher_cache_top_k out")


def class_pixels(recipe: Recipe, train: SegDataset) -> tuple[int, ...] | None:
    """Labelled pixels of each class in the training data, if a term of the recipe needs them."""
    return survey_dataset(train).pixels if recipe.needs_class_pixels else None
