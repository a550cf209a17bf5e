"""What is trained, and how: one small file for each recipe."""

from train.recipes.base import Batch, Recipe, Stage
from train.recipes.registry import build_model, recipe_of

__all__ = ["Batch", "Recipe", "Stage", "build_model", "recipe_of"]
