"""Training: recipes, the loop that every stage runs on, and teachers from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .recipes import DistillRecipe, TrainRecipe, load_recipe
from .run_record import RunRecord

if TYPE_CHECKING:
    from .runs import RunFolder
    from .scoring import TokenScore, evaluate_model
    from .teacher import build_model, train

__all__ = [
    "DistillRecipe",
    "RunFolder",
    "RunRecord",
    "TokenScore",
    "TrainRecipe",
    "build_model",
    "evaluate_model",
    "load_recipe",
    "train",
]

__getattr__ = lazy_names(
    __name__,
    {
        "runs": ["RunFolder"],
        "scoring": ["TokenScore", "evaluate_model"],
        "teacher": ["build_model", "train"],
    },
)
