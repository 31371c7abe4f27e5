"""Evaluation: quality, speed and layer latency of models, plans tried on the teacher, and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .bench_artefact import Bench, BenchResult
from .check_artefact import Check, CheckResult
from .harness import Tasks
from .hypotheses import Texts
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
    "Tasks",
    "Texts",
    "bench_models",
    "check_model",
    "evaluate_models",
    "measure_latency",
    "measure_truncations",
    "verify_plans",
]

__getattr__ = lazy_names(
    __name__,
    {
        "checks": ["check_model"],
        "layer_latency": ["measure_latency"],
        "plan_trials": ["measure_truncations", "verify_plans"],
        "quality": ["evaluate_models"],
        "speed": ["bench_models"],
    },
)
