"""The systems of the survey as arguments of `zigzag.generate`; the table stands in `zigzag.generation.recipes`."""

from zigzag.generation.recipes import RECIPES, Recipe, arguments

__all__ = ["RECIPES", "Recipe", "arguments"]
