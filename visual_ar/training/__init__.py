"""Training of the bundled models from small recipe files; knows nothing about serving them."""

from visual_ar.training.recipe_file import bundled, load_recipe
from visual_ar.training.run import run, run_all, run_for

__all__ = ["bundled", "load_recipe", "run", "run_all", "run_for"]
