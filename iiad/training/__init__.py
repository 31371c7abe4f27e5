"""Training: recipes, the loop that every stage runs on, and teachers from scratch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .recipes import DistillRecipe, TrainRecipe, load_recipe

if TYPE_CHECKING:
    from .runs import RunFolder, RunRecord
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

_WITH_TORCH = {
    "RunFolder": "runs",
    "RunRecord": "runs",
    "TokenScore": "scoring",
    "evaluate_model": "scoring",
    "build_model": "teacher",
    "train": "teacher",
}


def __getattr__(name: str) -> Any:
    """Import torch only for the names that need it."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
