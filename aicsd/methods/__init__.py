"""Methods: one small YAML recipe each, read by ``recipe.py``."""

from typing import TYPE_CHECKING

from aicsd._lazy import on_first_use

if TYPE_CHECKING:
    from aicsd.methods.contract import LossContract, contract_of
    from aicsd.methods.recipe import Recipe, TermRecipe, load_recipe, make_recipe
    from aicsd.methods.shipped import RECIPE_FOLDER, list_methods

_HOMES = {
    "aicsd.methods.contract": ("LossContract", "contract_of"),
    "aicsd.methods.recipe": ("Recipe", "TermRecipe", "load_recipe", "make_recipe"),
    "aicsd.methods.shipped": ("RECIPE_FOLDER", "list_methods"),
}
"""Module -> the names of this package that live in it; names are listed without PyTorch."""

__all__ = [
    "RECIPE_FOLDER",
    "LossContract",
    "Recipe",
    "TermRecipe",
    "contract_of",
    "list_methods",
    "load_recipe",
    "make_recipe",
]

if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _HOMES)
