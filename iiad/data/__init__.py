"""Text to tokens: sources, documents, tokenizers, packed corpora, and blocks and windows for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iiad import lazy_names

from .corpus import TokenCorpus
from .documents import read_documents, require_readable
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
    "require_readable",
    "resolve_inputs",
    "tokenizer_fingerprint",
    "train_tokenizer",
]

__getattr__ = lazy_names(__name__, {"blocks": ["TokenBlocks", "evaluation_windows"]})
