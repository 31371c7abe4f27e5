"""A token corpus on disk: one flat file of token ids and the record that vouches for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iiad.files import atomic_file

from .cache import ADVICE

__all__ = ["TokenCorpus", "open_corpus", "record_path", "tokens_path", "write_record"]

FORMAT = 1
"""Raised when the files' layout or the meaning of a field changes; older files are then built again."""


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Documents as one sequence of token ids, an end-of-text token after each.

    Attributes:
        tokens: (num_tokens,) ids, unsigned 16- or 32-bit, memory-mapped read-only.
        num_tokens: tokens, those that end documents included.
        num_documents: documents that hold text; empty ones are left out.
        num_bytes: UTF-8 bytes of the documents' text, end-of-text tokens not counted.
        fingerprint: sha256 of all that decides the tokens: sources' content, tokenizer and settings.
        names: the sources' names, in order.
        eos_token_id: the token that ends documents.
    """

    tokens: np.memmap
    num_tokens: int
    num_documents: int
    num_bytes: int
    fingerprint: str
    names: tuple[str, ...] = field(repr=False)
    eos_token_id: int

    @property
    def tokens_per_byte(self) -> float:
        """Times the loss in nats a token and divided by ln 2: bits per byte, comparable across tokenizers."""
        return self.num_tokens / self.num_bytes


def tokens_path(folder: Path, fingerprint: str) -> Path:
    """Where the token ids lie: little-endian, nothing before or after them."""
    return folder / f"{fingerprint}.bin"


def record_path(folder: Path, fingerprint: str) -> Path:
    """Where the record lies; it is written last, so that its presence says that the tokens are whole."""
    return folder / f"{fingerprint}.json"


def write_record(folder: Path, fingerprint: str, record: dict[str, Any]) -> None:
    """Commit the corpus: `dtype`, `num_tokens`, `num_documents`, `num_bytes`, and what else is good to know."""
    with atomic_file(record_path(folder, fingerprint), ADVICE) as file:
        file.write((json.dumps({"format": FORMAT, **record}, indent=2) + "\n").encode())


def open_corpus(
    folder: Path, fingerprint: str, names: tuple[str, ...], eos_token_id: int
) -> TokenCorpus | None:
    """Open the corpus, or return None if it is not there whole and must be built."""
    path = tokens_path(folder, fingerprint)
    try:
        record = json.loads(record_path(folder, fingerprint).read_bytes())
        dtype = np.dtype(record["dtype"])
        num_tokens, num_documents, num_bytes = (
            int(record[name]) for name in ("num_tokens", "num_documents", "num_bytes")
        )
        if record["format"] != FORMAT or path.stat().st_size != num_tokens * dtype.itemsize:
            return None
        tokens = np.memmap(path, dtype=dtype, mode="r", shape=(num_tokens,))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return TokenCorpus(tokens, num_tokens, num_documents, num_bytes, fingerprint, names, eos_token_id)
