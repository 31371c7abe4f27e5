"""Influence: score each iteration of a teacher on calibration text -> profile.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "measurement": ["calibration_batches", "measure_influence", "sample_blocks"],
        "profiler": ["num_profile_evaluations", "profile_batch", "profile_model"],
    },
)
