"""Conversion: released checkpoints, Llama upcycling, quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

if TYPE_CHECKING:
    from .released import convert, from_released, to_released

__all__ = ["convert", "from_released", "to_released"]

__getattr__ = lazy_names(
    __name__,
    {
        "released": ["convert", "from_released", "to_released"],
    },
)
