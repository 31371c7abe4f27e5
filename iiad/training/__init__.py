"""Training: recipes, the engine that every stage runs on, and teachers from scratch."""

from iiad.recipes import DistillRecipe, TrainRecipe, load_recipe

from .runs import RunFolder, RunRecord
from .teacher import build_model, train

__all__ = ["DistillRecipe", "RunFolder", "RunRecord", "TrainRecipe", "build_model", "load_recipe", "train"]
