"""Recipes that come with the package; listing them needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

RECIPE_FOLDER = Path(__file__).parent


def list_methods() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))
