"""Quality of any causal language model, and what it costs: one row a model, all against the first."""

from .artefact import Evaluation, EvaluationResult, EvaluationSettings
from .comparison import evaluate_models
from .scoring import TokenScore, evaluate_model

__all__ = [
    "Evaluation",
    "EvaluationResult",
    "EvaluationSettings",
    "TokenScore",
    "evaluate_model",
    "evaluate_models",
]
