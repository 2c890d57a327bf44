"""Methods: one small YAML recipe each, read by ``recipe.py``."""

from aicsd.methods.contract import LossContract, contract_of
from aicsd.methods.recipe import Recipe, TermRecipe, list_methods, load_recipe, make_recipe

__all__ = [
    "LossContract",
    "Recipe",
    "TermRecipe",
    "contract_of",
    "list_methods",
    "load_recipe",
    "make_recipe",
]
