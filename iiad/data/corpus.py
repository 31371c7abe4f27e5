"""A token corpus in the cache folder: a flat file of token ids and the record that vouches for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field, JsonValue

from iiad.artefacts import Record, Size, check_fields
from iiad.errors import InputError, printable
from iiad.files import atomic_file, read_json
from iiad.progress import Progress, print_status, report_progress

from .hashes import HashedSource

__all__ = [
    "ADVICE",
    "FORMAT",
    "CorpusRecord",
    "TokenCorpus",
    "default_cache_dir",
    "describe_sources",
    "open_corpus",
    "open_tokens",
    "token_dtype",
    "write_record",
]

FORMAT = 1
"""Raised when the files' layout or the meaning of a field changes; older files are then built again."""
SHOWN_FROM = 1 << 30  # bytes, about a second; fewer are read in silence
TOKENS_AT_ONCE = 1 << 20
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

    def targets(self, most: int) -> np.ndarray:
        """Return the first `most` tokens, all of which are asked for."""
        return self.tokens[:most]


def default_cache_dir() -> Path:
    """Return `$IIAD_CACHE`, else `$XDG_CACHE_HOME/iiad`, else `~/.cache/iiad`."""
    if os.environ.get("IIAD_CACHE"):
        return Path(os.environ["IIAD_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iiad"


class CorpusRecord(Record):
    """Written last: its presence says that `FINGERPRINT.bin` is whole, and its hash, whether it still is."""

    format: int = Field(FORMAT, ge=FORMAT, le=FORMAT)
    dtype: Literal["<u2", "<u4"]
    num_tokens: Size
    num_documents: Size
    num_bytes: Size
    sha256: str
    settings: dict[str, JsonValue]
    sources: list[dict[str, JsonValue]]


SomeRecord = TypeVar("SomeRecord", bound=CorpusRecord)


def write_record(folder: Path, fingerprint: str, record: CorpusRecord) -> None:
    """Write the record of a corpus, whose tokens are there."""
    with atomic_file(folder / f"{fingerprint}.json", ADVICE) as file:
        file.write((record.model_dump_json(indent=2) + "\n").encode())


def describe_sources(hashed: Sequence[HashedSource]) -> list[dict[str, JsonValue]]:
    """Return what a record says of each file."""
    return [
        {
            "path": printable(str(item.source.path)),
            "name": printable(item.source.name),
            "kind": item.source.kind,
            "sha256": item.sha256,
            "size": item.size,
        }
        for item in hashed
    ]


def token_dtype(vocab_size: int) -> Literal["<u2", "<u4"]:
    """Return the type that holds every id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def open_corpus(
    folder: Path,
    fingerprint: str,
    names: tuple[str, ...],
    eos_token_id: int,
    vocab_size: int,
    progress: Progress = False,
) -> TokenCorpus | None:
    """Open the corpus, or return None if it is not there whole and must be built; as `open_tokens`."""
    found = open_tokens(folder, fingerprint, CorpusRecord, vocab_size, progress)
    if found is None:
        return None
    record, tokens = found
    counts = (record.num_tokens, record.num_documents, record.num_bytes)
    return TokenCorpus(tokens, *counts, fingerprint, names, eos_token_id)


def open_tokens(
    folder: Path, fingerprint: str, kind: type[SomeRecord], vocab_size: int, progress: Progress = False
) -> tuple[SomeRecord, np.memmap] | None:
    """Open the tokens, with their record of this kind; None if they are not there whole.

    vocab_size: no id is above. All tokens are read once in a process, at a second for a GB, and their hash compared.
    """
    path = folder / f"{fingerprint}.bin"  # token ids, little-endian, nothing before or after them
    try:
        record = check_fields(kind, read_json(folder / f"{fingerprint}.json"), path)
        if path.stat().st_size != record.num_tokens * np.dtype(record.dtype).itemsize:
            return None
        tokens = np.memmap(path, dtype=record.dtype, mode="r", shape=(record.num_tokens,))
        sha256, highest = _read_through(path, tokens, progress)
    except (OSError, InputError):
        return None
    if sha256 != record.sha256 or highest >= vocab_size:
        print_status(f"{path}: its tokens are not as they were written; tokenizing again")
        return None
    return record, tokens


_read: dict[tuple[str | int, ...], tuple[str, int]] = {}


def _read_through(path: Path, tokens: np.memmap, progress: Progress) -> tuple[str, int]:
    """Return the sha256 of the tokens and the highest id, remembered while the file's state stays."""
    stat = path.stat()
    state = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    if state not in _read:
        digest, highest = hashlib.sha256(), 0
        shown = progress if tokens.nbytes >= SHOWN_FROM else False
        with report_progress("verifying tokens", tokens.nbytes, shown) as advance:
            for start in range(0, len(tokens), TOKENS_AT_ONCE):
                part = tokens[start : start + TOKENS_AT_ONCE]
                digest.update(part.data)
                highest = max(highest, int(part.max()))
                advance((start + len(part)) * tokens.itemsize)
        _read[state] = digest.hexdigest(), highest
    return _read[state]
