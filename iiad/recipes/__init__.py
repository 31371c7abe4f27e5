"""Recipes and their sections: read and checked whole, without torch or transformers."""

from .distillation import STAGES, DistillationSection, StudentSection
from .optimization import OptimizationSection, StageSection, TrainingSection
from .recipe import DistillRecipe, TrainRecipe, find_recipe, load_recipe, read_fields
from .section import Section
from .sections import DataSection, ModelSection, TokenizerSection
from .validation import find_problems

__all__ = [
    "STAGES",
    "DataSection",
    "DistillRecipe",
    "DistillationSection",
    "ModelSection",
    "OptimizationSection",
    "Section",
    "StageSection",
    "StudentSection",
    "TokenizerSection",
    "TrainRecipe",
    "TrainingSection",
    "find_problems",
    "find_recipe",
    "load_recipe",
    "read_fields",
]
