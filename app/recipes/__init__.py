"""Recipes: what is trained, and how a batch becomes a loss. `RECIPES` lists what `recipe.name` accepts."""

from app.recipes.distill import Distill
from app.recipes.recipe import Batch, Recipe, arrived, wanted
from app.recipes.self_supervised import SelfSupervised
from app.recipes.supervised import Supervised

__all__ = ["RECIPES", "Batch", "Distill", "Recipe", "SelfSupervised", "Supervised", "arrived", "wanted"]

RECIPES: dict[str, type[SelfSupervised] | type[Supervised] | type[Distill]] = {
    "self_supervised": SelfSupervised,
    "supervised": Supervised,
    "distill": Distill,
}
