"""What is trained, and how a batch becomes a number. `RECIPES` names what `recipe.name` may choose."""

from app.recipes.recipe import Batch, Recipe
from app.recipes.self_supervised import SelfSupervised

__all__ = ["RECIPES", "Batch", "Recipe", "SelfSupervised"]

RECIPES = {"self_supervised": SelfSupervised}
