"""Conversion: released checkpoints, Llama upcycling, quantization."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .released import convert, from_released, to_released

__all__ = ["convert", "from_released", "to_released"]

_WITH_TORCH = {"convert": "released", "from_released": "released", "to_released": "released"}


def __getattr__(name: str) -> Any:
    """Import torch only for the names that need it."""
    if name in _WITH_TORCH:
        return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
