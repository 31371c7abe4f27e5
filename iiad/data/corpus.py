"""A token corpus in the cache folder: a flat file of token ids and the record that vouches for it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iiad.files import atomic_file

__all__ = ["ADVICE", "FORMAT", "TokenCorpus", "default_cache_dir", "open_corpus", "write_record"]

FORMAT = 1
"""Raised when the files' layout or the meaning of a field changes; older files are then built again."""
ADVICE = "; name another folder with cache_dir or IIAD_CACHE"


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Documents as one sequence of token ids, an end-of-text token after each.

    tokens: (num_tokens,) ids, unsigned 16- or 32-bit, memory-mapped read-only.
    num_documents: documents that hold text; empty ones are left out.
    num_bytes: UTF-8 bytes of the documents' text, end-of-text tokens not counted.
    fingerprint: sha256 of all that decides the tokens: sources' content, tokenizer and settings.
    names: the sources' names, in order.
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


def default_cache_dir() -> Path:
    """Return `$IIAD_CACHE`, else `$XDG_CACHE_HOME/iiad`, else `~/.cache/iiad`."""
    if os.environ.get("IIAD_CACHE"):
        return Path(os.environ["IIAD_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iiad"


def write_record(folder: Path, fingerprint: str, record: dict[str, Any]) -> None:
    """Write the record of a corpus, last: its presence says that the tokens in `FINGERPRINT.bin` are whole."""
    with atomic_file(folder / f"{fingerprint}.json", ADVICE) as file:
        file.write((json.dumps({"format": FORMAT, **record}, indent=2) + "\n").encode())


def open_corpus(
    folder: Path, fingerprint: str, names: tuple[str, ...], eos_token_id: int
) -> TokenCorpus | None:
    """Open the corpus, or return None if it is not there whole and must be built."""
    path = folder / f"{fingerprint}.bin"  # token ids, little-endian, nothing before or after them
    try:
        record = json.loads((folder / f"{fingerprint}.json").read_bytes())
        dtype = np.dtype(record["dtype"])
        num_tokens, documents, size = (int(record[f"num_{of}"]) for of in ("tokens", "documents", "bytes"))
        if record["format"] != FORMAT or path.stat().st_size != num_tokens * dtype.itemsize:
            return None
        tokens = np.memmap(path, dtype=dtype, mode="r", shape=(num_tokens,))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return TokenCorpus(tokens, num_tokens, documents, size, fingerprint, names, eos_token_id)
