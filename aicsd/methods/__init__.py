"""Methods: one small YAML recipe each, read by ``recipe.py``."""

from aicsd.methods.recipe import (
    TERMS,
    Recipe,
    TermRecipe,
    list_methods,
    load_recipe,
)

__all__ = ["TERMS", "Recipe", "TermRecipe", "list_methods", "load_recipe"]
