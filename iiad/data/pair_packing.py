"""Packing of pairs: tokenize them once into the cache folder, and find them there the next time."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iiad.errors import InputError
from iiad.files import atomic_file, file_sha256
from iiad.progress import Progress, report_progress

from .corpus import ADVICE, CorpusRecord, describe_sources, open_tokens, token_dtype, write_record
from .hashes import HashedSource
from .pairs import PairCorpus, PairLimits, hash_settings, limit_pairs
from .rows import PAIR, read_rows, require_texts
from .sources import FileSource
from .tokenizers import start_token_id, tokenizer_fingerprint, tokenizing

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["pack_pairs"]

FORMAT = 1
ROWS_AT_ONCE = 1 << 12
CHARS_AT_ONCE = 1 << 21
LENGTH = np.dtype("<u4")


class PairRecord(CorpusRecord):
    """Record of pairs; num_documents counts them. sha256 is of their tokens, lengths_sha256 of their lengths."""

    lengths_sha256: str


def pack_pairs(
    files: Sequence[FileSource],
    hashed: Sequence[HashedSource],
    tokenizer: PreTrainedTokenizerFast,
    backend: Tokenizer,
    folder: Path,
    limits: PairLimits | None = None,
    progress: Progress = True,
) -> PairCorpus:
    """Turn pairs into tokens, or find them in the cache folder, and leave out or cut those above the limits.

    The cache holds all of them, whatever the limits. hashed: all files of `files`. backend: tokenizes.
    Raises InputError where a row has other fields or a side without text, and where no pair is within the limits.
    """
    limits = limits or PairLimits()
    limits.require()
    settings = {
        "format": FORMAT,
        "fields": PAIR,
        "sources": [[item.sha256, item.source.kind, item.source.compressed] for item in hashed],
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }
    fingerprint = hash_settings(settings)
    vocab_size = 1 + max(*backend.get_vocab().values(), tokenizer.eos_token_id)
    found = _open(folder, fingerprint, vocab_size, progress)
    if found is None:
        _build(folder / f"{fingerprint}.bin", settings, files, hashed, backend, progress)
        found = _open(folder, fingerprint, vocab_size, progress)
    if found is None:  # another program is at work in the folder
        raise InputError(f"cache_dir: {folder}: {fingerprint}.bin vanished or was cut as soon as written")
    tokens, lengths = found
    ends = lengths.ravel().cumsum(dtype=np.int64)
    corpus = PairCorpus(
        tokens=tokens,
        starts=np.concatenate([[0], ends[:-1]]).reshape(-1, 2),
        lengths=lengths,
        numbers=np.arange(len(lengths)),
        fingerprint=fingerprint,
        names=tuple(file.name for file in files),
        eos_token_id=tokenizer.eos_token_id,
        start_token_id=start_token_id(tokenizer),
        pad_token_id=start_token_id(tokenizer) if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    return limit_pairs(corpus, limits)


def _open(
    folder: Path, fingerprint: str, vocab_size: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return tokens and lengths (num_documents, 2), int64; None where they are not there whole."""
    found = open_tokens(folder, fingerprint, PairRecord, vocab_size, progress)
    if found is None:
        return None
    record, tokens = found
    path = folder / f"{fingerprint}.lengths"
    try:
        if file_sha256(path) != record.lengths_sha256:
            return None
        lengths = np.fromfile(path, LENGTH).astype(np.int64)
    except OSError:
        return None
    if len(lengths) != 2 * record.num_documents or lengths.sum() != record.num_tokens:
        return None
    return tokens, lengths.reshape(-1, 2)


def _build(
    path: Path,
    settings: dict[str, Any],
    files: Sequence[FileSource],
    hashed: Sequence[HashedSource],
    backend: Tokenizer,
    progress: Progress,
) -> None:
    """Write tokens and lengths, then the record that says that they are whole."""
    eos_token_id = settings["eos_token_id"]
    dtype = token_dtype(1 + max(*backend.get_vocab().values(), eos_token_id))
    lengths, num_bytes, digest = array("I"), 0, hashlib.sha256()
    total = sum(item.size for item in hashed)
    with atomic_file(path, ADVICE) as file, report_progress("tokenizing", total, progress) as advance:
        for part in _parts(_texts(files, hashed, advance)):
            texts = [text for pair in part for text in pair]  # source and target in turn
            num_bytes += sum(len(text.encode()) for text in texts)
            tokens = _tokenize(backend, texts, eos_token_id, lengths).astype(dtype)
            file.write(tokens.data)
            digest.update(tokens.data)
        if not lengths:
            raise InputError(f"inputs: expected at least one pair, got none in {files[0].name}")
    with atomic_file(path.with_suffix(".lengths"), ADVICE) as file:
        file.write(np.array(lengths, LENGTH).data)
    record = PairRecord(
        dtype=dtype,
        num_tokens=sum(lengths),
        num_documents=len(lengths) // 2,
        num_bytes=num_bytes,
        sha256=digest.hexdigest(),
        lengths_sha256=file_sha256(path.with_suffix(".lengths")),
        settings={**settings, "fields": list(PAIR), "sources": len(hashed)},
        sources=describe_sources(hashed),
    )
    write_record(path.parent, path.stem, record)


def _texts(files: Sequence[FileSource], hashed: Sequence[HashedSource], advance: Any) -> Iterator[list[str]]:
    """Yield source and target of every pair."""
    before, items = 0, iter(hashed)
    for file in files:

        def on_position(position: int, before: int = before) -> None:
            advance(before + position)

        for place, values in read_rows(file, PAIR, on_position):
            texts = require_texts(place, PAIR, values)
            for name, text in zip(PAIR, texts, strict=True):
                if not text.strip():
                    raise InputError(f"{place}: {name}: expected text, got none")
            yield texts
        for _ in file.files:
            item = next(items)
            item.check_unchanged()
            before += item.size
        advance(before)


def _parts(pairs: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    """Gather enough pairs at a time to keep every core busy, few enough to fit in memory."""
    part: list[list[str]] = []
    num_chars = 0
    for pair in pairs:
        part.append(pair)
        num_chars += sum(map(len, pair))
        if len(part) >= ROWS_AT_ONCE or num_chars >= CHARS_AT_ONCE:
            yield part
            part, num_chars = [], 0
    if part:
        yield part


def _tokenize(backend: Tokenizer, texts: list[str], eos_token_id: int, lengths: Any) -> np.ndarray:
    """Return the tokens of all texts, each with its end, (n,); add their lengths to `lengths`."""
    with tokenizing("tokenizer: cannot encode the pairs"):
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    parts = [[*encoding.ids, eos_token_id] for encoding in encodings]
    lengths.extend(map(len, parts))
    return np.concatenate([np.array(ids, np.int64) for ids in parts])
