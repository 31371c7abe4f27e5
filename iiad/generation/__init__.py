"""Generation: text from any model, and lossless drafting (speculative decoding)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drafts import Draft
    from .speculation import speculate
    from .text import Generation, generate_text, load_drafted_generator, load_generator

__all__ = ["Draft", "Generation", "generate_text", "load_drafted_generator", "load_generator", "speculate"]

_WITH_TORCH = {"Draft": "drafts", "speculate": "speculation"}


def __getattr__(name: str) -> Any:
    """Import torch only for the names that need it."""
    if name in __all__:
        return getattr(import_module(f".{_WITH_TORCH.get(name, 'text')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
