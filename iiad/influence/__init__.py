"""Influence: measure what each iteration of a teacher contributes; keep it as a profile."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .agreement import rank_agreement
from .profile import METRICS, BatchRecord, FixedPoint, Profile, ProfileSettings

if TYPE_CHECKING:
    from .calibration import calibration_batches, sample_blocks
    from .measurement import measure_influence
    from .profiler import num_profile_evaluations, profile_batch, profile_model

__all__ = [
    "METRICS",
    "BatchRecord",
    "FixedPoint",
    "Profile",
    "ProfileSettings",
    "calibration_batches",
    "measure_influence",
    "num_profile_evaluations",
    "profile_batch",
    "profile_model",
    "rank_agreement",
    "sample_blocks",
]

_WITH_TORCH = {
    "calibration_batches": "calibration",
    "sample_blocks": "calibration",
    "measure_influence": "measurement",
    "num_profile_evaluations": "profiler",
    "profile_batch": "profiler",
    "profile_model": "profiler",
}


def __getattr__(name: str) -> Any:
    """Import torch only for the names that need it."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
