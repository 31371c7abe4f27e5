"""Studies: the same question asked of several models, with seeds, tuned learning rates and intervals."""

from __future__ import annotations

from .definition import StudentsSection, Study, load_study
from .estimation import Estimate, estimate, paired_difference
from .study_artefact import ArmResult, StudentResult, StudyResult

__all__ = [
    "ArmResult",
    "Estimate",
    "StudentResult",
    "StudentsSection",
    "Study",
    "StudyResult",
    "estimate",
    "load_study",
    "paired_difference",
]
