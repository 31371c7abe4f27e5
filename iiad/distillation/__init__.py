"""Distillation: a teacher (or its stored signals) and a plan become an E-IIET, stage by stage."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_WITH_TORCH = {
    "capture_signals": "capture",
    "LearnFromTeacher": "objectives",
    "LearnLayers": "objectives",
    "distill": "stages",
    "SignalBlocks": "stored_signals",
    "StoredSignals": "stored_signals",
    "LiveTeacher": "teacher_signals",
    "Signal": "teacher_signals",
    "StoredTeacher": "teacher_signals",
    "Teacher": "teacher_signals",
}


def __getattr__(name: str) -> Any:
    """Import torch only for the names that need it."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
