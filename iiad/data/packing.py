"""Packing: tokenize sources once into a token corpus, and find it in the cache the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from iiad.errors import InputError
from iiad.files import atomic_file
from iiad.progress import Progress, report_progress

from .corpus import (
    ADVICE,
    FORMAT,
    CorpusRecord,
    default_cache_dir,
    describe_sources,
    open_corpus,
    token_dtype,
    write_record,
)
from .documents import PIECE_CHARS, read_documents, require_readable
from .hashes import HashedSource, hash_sources
from .labelled import generate_rows
from .labelled_files import pack_rows
from .pair_packing import pack_pairs
from .pairs import PairCorpus, PairLimits
from .rows import PAIR, row_fields
from .sources import AnySource, TaskSource
from .tokenizers import tokenizer_fingerprint, tokenizing

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from .blocks import AnyCorpus

__all__ = ["pack", "pack_for"]

SHORT_PIECE_CHARS = 1 << 14  # measured on two cores: 4.5 MB/s, against 2.6 on pieces of 1 MiB
BATCH_CHARS = 1 << 21
BATCH_PIECES = 1 << 12


def pack(
    sources: Sequence[AnySource],
    tokenizer: PreTrainedTokenizerFast,
    *,
    text_field: str = "text",
    cache_dir: str | Path | None = None,
    num_rows: int | None = None,
    limits: PairLimits | None = None,
    progress: Progress = True,
) -> AnyCorpus:
    """Turn sources into one sequence of tokens, an end-of-text token after every document with text.

    Files whose first row has no text field but `prompt` and `completion`, or `input_ids` and `labels`, and generated
    tasks become labelled rows instead; rows of `source` and `target`, parallel files and `docstrings`, pairs. The
    tokens lie in `cache_dir`, under a hash of the sources' content and order, the tokenizer and the settings: with
    all of these unchanged nothing is tokenized again. Memory does not grow with a text. A special token spelt out in
    the text is tokenized as the characters it is spelt with: text cannot end a document. A document
    is tokenized in pieces (`cut_pieces`); a tokenizer that adds a space before text, as SentencePiece ones do, adds
    one before every piece, and so gets pieces of 1 MiB.

    tokenizer: with an eos token; its padding and truncation are not used and not changed.
    text_field: the jsonl field or parquet column with the text. cache_dir: default: as `default_cache_dir` says.
    num_rows: of generated tasks that do not say themselves; default 4,096. limits: of pairs alone.
    progress: True to report to stderr, False not to, or a function of bytes done and bytes in all.

    Raises InputError where text, rows and tasks are mixed, limits are given without pairs, no source has text, a
    source is at fault (see `read_documents`) or changes while read, the tokenizer has no eos token, or `cache_dir`
    cannot be written or is full.
    """
    if not sources:
        raise InputError("sources: expected at least one, got none")
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: expected an eos_token, to stand between documents, got none")
    files = [source for source in sources if not isinstance(source, TaskSource)]
    tasks = [source for source in sources if isinstance(source, TaskSource)]
    kinds = {row_fields(file, text_field) for file in files}
    if len(kinds) + bool(tasks) > 1:
        raise InputError(f"inputs: expected text, rows of one kind or tasks, got {_kinds(kinds, tasks)}")
    if limits is not None and kinds != {PAIR}:
        raise InputError(f"max_source_tokens, max_target_tokens: expected pairs, got {_kinds(kinds, tasks)}")
    if tasks:
        return generate_rows(tasks, tokenizer, num_rows)
    folder = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    hashed = hash_sources([part for file in files for part in file.files], folder, progress)
    backend = _own_backend(tokenizer)
    (fields,) = kinds
    if fields == PAIR:
        return pack_pairs(files, hashed, tokenizer, backend, folder, limits, progress)
    if fields is not None:
        return pack_rows(hashed, fields, tokenizer, backend, folder, progress)
    # All that decides the tokens.
    settings = {
        "format": FORMAT,
        "sources": [[item.sha256, item.source.kind, item.source.compressed] for item in hashed],
        "text_field": text_field,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "piece_chars": _piece_chars(backend),
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    vocab_size = 1 + max(*backend.get_vocab().values(), tokenizer.eos_token_id)
    names = tuple(file.name for file in files)
    where = (folder, fingerprint, names, tokenizer.eos_token_id, vocab_size, progress)
    corpus = open_corpus(*where)
    if corpus is None:
        require_readable([item.source for item in hashed], text_field)
        dtype = token_dtype(vocab_size)
        _build(folder / f"{fingerprint}.bin", settings, hashed, backend, dtype, progress)
        corpus = open_corpus(*where)
    if corpus is None:  # another program is at work in the folder
        raise InputError(f"cache_dir: {folder}: {fingerprint}.bin vanished or was cut as soon as written")
    return corpus


def pack_for(
    config: Any,
    sources: Sequence[AnySource],
    tokenizer: PreTrainedTokenizerFast,
    *,
    where: str = "data",
    text_field: str = "text",
    **options: Any,
) -> AnyCorpus:
    """Pack what a kind of model reads: an encoder-decoder pairs, behind its own start token, a causal model all else.

    config: the model's. where: the sources' name in errors. options: as of `pack`.
    Raises InputError for what the other kind reads, before anything is tokenized, and as `pack`.
    """
    kinds = {isinstance(source, TaskSource) or row_fields(source, text_field) != PAIR for source in sources}
    if config.is_encoder_decoder and kinds == {True}:
        expected = "pairs of source and target, for an encoder-decoder"
        raise InputError(f"{where}: expected {expected} ({config.model_type}), got text or labelled rows")
    if not config.is_encoder_decoder and kinds == {False}:
        expected = f"text or labelled rows, for a causal model ({config.model_type})"
        raise InputError(f"{where}: expected {expected}, got pairs of source and target")
    corpus = pack(sources, tokenizer, text_field=text_field, **options)
    start = getattr(config, "decoder_start_token_id", None)
    if isinstance(corpus, PairCorpus) and start is not None:  # Bart's is no padding
        corpus = replace(corpus, start_token_id=start)
    return corpus


def _kinds(kinds: set[Any], tasks: Sequence[TaskSource]) -> str:
    """Name the kinds of sources that were mixed."""
    names = ["text" if kind is None else f"rows of {kind[0]} and {kind[1]}" for kind in kinds]
    return " and ".join(sorted(names) + [source.name for source in tasks[:1]])


def _own_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return a copy to tokenize with, so that the settings below do not change the caller's tokenizer."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # that is, as ordinary text
    return backend


def _piece_chars(backend: Tokenizer) -> int:
    """Return short pieces, for speed, if the tokenizer gives two lines the tokens that it gives each alone."""
    with tokenizing("tokenizer: cannot encode a text"):
        both, first, second = (
            backend.encode(text, add_special_tokens=False).ids for text in ("one\ntwo", "one\n", "two")
        )
    return SHORT_PIECE_CHARS if both == first + second else PIECE_CHARS


def _build(
    path: Path,
    settings: dict[str, Any],
    hashed: list[HashedSource],
    backend: Tokenizer,
    dtype: Literal["<u2", "<u4"],
    progress: Progress,
) -> None:
    """Write the tokens to `path`, then the record that says that they are whole."""
    eos_token_id, digest = settings["eos_token_id"], hashlib.sha256()
    counts = {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
    total = sum(item.size for item in hashed)
    with atomic_file(path, ADVICE) as file, report_progress("tokenizing", total, progress) as advance:
        for batch in _batches(_pieces(hashed, settings["text_field"], settings["piece_chars"], advance)):
            tokens = _tokenize(backend, batch, eos_token_id, np.dtype(dtype))
            file.write(tokens.data)
            digest.update(tokens.data)
            counts["num_tokens"] += len(tokens)
            counts["num_documents"] += sum(ends for _, ends in batch)
            counts["num_bytes"] += sum(len(piece.encode()) for piece, _ in batch)
        if counts["num_documents"] == 0:
            more = f" and {len(hashed) - 3} more" if len(hashed) > 3 else ""
            names = ", ".join(item.source.name for item in hashed[:3])
            raise InputError(f"inputs: expected at least one document with text, got none in {names}{more}")
    settings = {**settings, "sources": len(hashed)}
    sha256 = digest.hexdigest()
    record = CorpusRecord(
        dtype=dtype, **counts, sha256=sha256, settings=settings, sources=describe_sources(hashed)
    )
    write_record(path.parent, path.stem, record)


def _pieces(
    hashed: list[HashedSource], text_field: str, piece_chars: int, advance: Callable[[int], None]
) -> Iterator[tuple[str, bool]]:
    """Yield all pieces of all documents; True marks the last of a document. Empty documents have none."""
    before = 0

    def on_position(position: int) -> None:
        advance(before + position)

    for item in hashed:
        documents = read_documents(item.source, text_field, piece_chars=piece_chars, on_position=on_position)
        for document in documents:
            held = ""
            for piece in document:
                if held:
                    yield held, False
                held = piece
            if held:
                yield held, True
        item.check_unchanged()
        before += item.size
        advance(before)


def _batches(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Gather enough pieces at a time to keep every core busy, few enough to fit in memory."""
    batch: list[tuple[str, bool]] = []
    num_chars = 0
    for piece, ends in pieces:
        batch.append((piece, ends))
        num_chars += len(piece)
        if num_chars >= BATCH_CHARS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _tokenize(
    backend: Tokenizer, batch: list[tuple[str, bool]], eos_token_id: int, dtype: np.dtype
) -> np.ndarray:
    """Return the tokens of a batch, (num_tokens,), with the end-of-text token where a document ends."""
    with tokenizing("tokenizer: cannot encode the text"):
        encodings = backend.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
    ends = [[eos_token_id] * ends for _, ends in batch]
    parts = [ids for encoding, end in zip(encodings, ends, strict=True) for ids in (encoding.ids, end)]
    return np.concatenate([np.array(ids, dtype) for ids in parts])
