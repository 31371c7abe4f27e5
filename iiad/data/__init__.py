"""Text to tokens: sources, documents, tokenizers, packed corpora, and blocks and windows for a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .corpus import TokenCorpus
from .documents import read_documents
from .packing import pack
from .sources import KNOWN_SUFFIXES, Source, resolve_inputs
from .tokenizers import load_tokenizer, tokenizer_fingerprint, train_tokenizer

if TYPE_CHECKING:
    from .blocks import TokenBlocks, evaluation_windows

__all__ = [
    "KNOWN_SUFFIXES",
    "Source",
    "TokenBlocks",
    "TokenCorpus",
    "evaluation_windows",
    "load_tokenizer",
    "pack",
    "read_documents",
    "resolve_inputs",
    "tokenizer_fingerprint",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import `blocks`, and torch with it, only when one of its names is asked for."""
    if name in ("TokenBlocks", "evaluation_windows"):
        return getattr(import_module("iiad.data.blocks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
