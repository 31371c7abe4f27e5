"""Distillation: a teacher (or its stored signals) and a plan become an E-IIET, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .signal_record import ShardRecord, SignalLayout, SignalRecord

if TYPE_CHECKING:
    from .capture import capture_signals
    from .objectives import LearnFromTeacher, LearnLayers
    from .stages import distill
    from .stored_signals import SignalBlocks, StoredSignals
    from .teacher_signals import LiveTeacher, Signal, StoredTeacher, Teacher

__all__ = [
    "LearnFromTeacher",
    "LearnLayers",
    "LiveTeacher",
    "ShardRecord",
    "Signal",
    "SignalBlocks",
    "SignalLayout",
    "SignalRecord",
    "StoredSignals",
    "StoredTeacher",
    "Teacher",
    "capture_signals",
    "distill",
]

__getattr__ = lazy_names(
    __name__,
    {
        "capture": ["capture_signals"],
        "objectives": ["LearnFromTeacher", "LearnLayers"],
        "stages": ["distill"],
        "stored_signals": ["SignalBlocks", "StoredSignals"],
        "teacher_signals": ["LiveTeacher", "Signal", "StoredTeacher", "Teacher"],
    },
)
