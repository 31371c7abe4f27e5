"""Generation: text from any model, and lossless drafting (speculative decoding)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

if TYPE_CHECKING:
    from .beam_targets import capture_beams
    from .drafts import Draft
    from .speculation import speculate
    from .text import Generation, generate_text, generate_texts, load_drafted_generator, load_generator

__all__ = [
    "Draft",
    "Generation",
    "capture_beams",
    "generate_text",
    "generate_texts",
    "load_drafted_generator",
    "load_generator",
    "speculate",
]

__getattr__ = lazy_names(
    __name__,
    {
        "beam_targets": ["capture_beams"],
        "drafts": ["Draft"],
        "speculation": ["speculate"],
        "text": ["Generation", "generate_text", "generate_texts", "load_drafted_generator", "load_generator"],
    },
)
