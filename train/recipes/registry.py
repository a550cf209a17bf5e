"""From a setting to its recipe, and from a vision tower to the model that the recipe trains."""

from __future__ import annotations

from torch import nn

from train.config import TrainConfig
from train.model.detector import DgsNet
from train.model.lora import add_lora
from train.recipes.base import Recipe
from train.recipes.dgs import DGS
from train.recipes.linear import LINEAR
from train.recipes.lora import LORA

_RECIPES = {recipe.name: recipe for recipe in (DGS, LINEAR, LORA)}


def recipe_of(config: TrainConfig) -> Recipe:
    """Returns the recipe that the settings name."""
    return _RECIPES[config.recipe]


def build_model(visual: nn.Module, embed_dim: int, config: TrainConfig) -> DgsNet:
    """Freezes a tower, puts the recipe's adapters on it (in place) and adds the recipe's heads.

    Draws the adapters' A first, then the heads, from torch's global generator.

    Args:
        visual: open_clip vision tower, float32.
        embed_dim: width D of its output.
        config: recipe, LoRA and text head.

    Raises:
        SpecError: the tower is not one of open_clip's plain vision transformers.
    """
    recipe = recipe_of(config)
    visual.requires_grad_(False)
    if recipe.has_adapters:
        add_lora(visual, config.lora)
    hidden = (config.surgery.text_hidden or embed_dim) if config.surgery.text_head == "mlp" else 0
    return DgsNet(visual, embed_dim, heads=recipe.heads, text_hidden=hidden).eval()
