"""Evaluation: quality, speed and layer latency of models, plans tried on the teacher, and checks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bench_artefact import Bench, BenchResult
from .check_artefact import Check, CheckResult
from .quality_artefact import Evaluation, EvaluationResult

if TYPE_CHECKING:
    from .checks import check_model
    from .layer_latency import measure_latency
    from .plan_trials import measure_truncations, verify_plans
    from .quality import evaluate_models
    from .speed import bench_models

__all__ = [
    "Bench",
    "BenchResult",
    "Check",
    "CheckResult",
    "Evaluation",
    "EvaluationResult",
    "bench_models",
    "check_model",
    "evaluate_models",
    "measure_latency",
    "measure_truncations",
    "verify_plans",
]

_WITH_TORCH = {
    "check_model": "checks",
    "measure_latency": "layer_latency",
    "measure_truncations": "plan_trials",
    "verify_plans": "plan_trials",
    "evaluate_models": "quality",
    "bench_models": "speed",
}


def __getattr__(name: str) -> Any:
    """Import torch only for the names that need it."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
