"""Influence: what each iteration of a teacher contributes, measured on calibration text, kept as a profile."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .agreement import rank_agreement
from .profile import METRICS, Profile, ProfileSettings

if TYPE_CHECKING:
    from .calibration import calibration_batches, sample_blocks
    from .measurement import measure_influence
    from .profiler import BatchScores, make_profile, num_profile_evaluations, profile_model

__all__ = [
    "METRICS",
    "BatchScores",
    "Profile",
    "ProfileSettings",
    "calibration_batches",
    "make_profile",
    "measure_influence",
    "num_profile_evaluations",
    "profile_model",
    "rank_agreement",
    "sample_blocks",
]

_WITH_TORCH = {
    "BatchScores": "profiler",
    "calibration_batches": "calibration",
    "make_profile": "profiler",
    "measure_influence": "measurement",
    "num_profile_evaluations": "profiler",
    "profile_model": "profiler",
    "sample_blocks": "calibration",
}


def __getattr__(name: str) -> Any:
    """Import torch only for what needs it: planning reads profiles without."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
