"""Influence: score each iteration of a teacher on calibration text -> profile.json."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .diagnostics import rank_agreement
from .profile import METRICS, BatchRecord, FixedPoint, Profile, ProfileSettings

if TYPE_CHECKING:
    from .measurement import calibration_batches, measure_influence, sample_blocks
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
    "calibration_batches": "measurement",
    "sample_blocks": "measurement",
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
