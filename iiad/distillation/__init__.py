"""Distillation: a teacher and a plan become an E-IIET, stage by stage."""

from .objectives import LearnFromTeacher, LearnLayers
from .stages import distill
from .teachers import LiveTeacher, Signal, StoredTeacher, Teacher

__all__ = [
    "LearnFromTeacher",
    "LearnLayers",
    "LiveTeacher",
    "Signal",
    "StoredTeacher",
    "Teacher",
    "distill",
]
