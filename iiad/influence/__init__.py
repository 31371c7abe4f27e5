"""Influence: score each iteration of a teacher on calibration text -> profile.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .convergence import FixedPoint
from .diagnostics import agreements
from .profile import METRICS, BatchRecord, Profile, ProfileSettings

if TYPE_CHECKING:
    from .measurement import measure_influence
    from .profiler import num_profile_evaluations, profile_batch

__all__ = [
    "METRICS",
    "BatchRecord",
    "FixedPoint",
    "Profile",
    "ProfileSettings",
    "agreements",
    "measure_influence",
    "num_profile_evaluations",
    "profile_batch",
]

__getattr__ = lazy_names(
    __name__,
    {"measurement": ["measure_influence"], "profiler": ["num_profile_evaluations", "profile_batch"]},
)
