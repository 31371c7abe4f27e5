"""Recipes and their sections: read and checked whole, without torch or transformers."""

from .distillation import STAGES, DistillationSection, StudentSection
from .optimization import OptimizationSection, StageSection, TrainingSection
from .recipe import COMMANDS, DistillRecipe, TrainRecipe, commands_of, find_recipe, load_recipe, read_fields
from .section import Section
from .sections import DataSection, ModelSection, TokenizerSection
from .validation import find_problems

__all__ = [
    "COMMANDS",
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
    "commands_of",
    "find_problems",
    "find_recipe",
    "load_recipe",
    "read_fields",
]
