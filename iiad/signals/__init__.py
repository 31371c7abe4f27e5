"""Signals: what a teacher says about a text, captured once and read by any number of distillations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .record import ShardRecord, SignalLayout, SignalRecord

if TYPE_CHECKING:
    from .capture import capture_signals
    from .stored import SignalBlocks, StoredSignals

__all__ = ["ShardRecord", "SignalBlocks", "SignalLayout", "SignalRecord", "StoredSignals", "capture_signals"]

_WITH_TORCH = {"SignalBlocks": "stored", "StoredSignals": "stored", "capture_signals": "capture"}


def __getattr__(name: str) -> Any:
    """Import torch only for what needs it: a record can be shown without."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
