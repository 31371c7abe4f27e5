"""Labelled rows of files: prompts and completions, or token ids and labels."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iiad.errors import InputError
from iiad.files import atomic_file
from iiad.progress import Progress, report_progress

from .corpus import ADVICE
from .hashes import HashedSource
from .labelled import CELL, FORMAT, NOT_ASKED, LabelledCorpus, LabelledRow, arrange_rows
from .rows import COMPLETION, IDS, read_rows, require_texts
from .tokenizers import tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["pack_rows"]

ROWS_AT_ONCE = 4096


def pack_rows(
    hashed: Sequence[HashedSource],
    fields: tuple[str, str],
    tokenizer: PreTrainedTokenizerFast,
    backend: Tokenizer,
    folder: Path,
    progress: Progress = True,
) -> LabelledCorpus:
    """Turn rows of files into labelled tokens, or find them in the cache folder.

    fields: `COMPLETION`, whose completion and a token that ends it are asked for, or `IDS`. backend: tokenizes.
    Raises InputError where a row has other fields, nothing to ask, or ids outside the tokenizer's vocabulary.
    """
    settings = {
        "format": FORMAT,
        "sources": [[item.sha256, item.source.kind, item.source.compressed] for item in hashed],
        "fields": fields,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    names = tuple(item.source.name for item in hashed)
    path = folder / f"{fingerprint}.npz"
    if (found := _open(path)) is None:
        rows = _tokenized(hashed, fields, tokenizer, backend, progress)
        found = arrange_rows(rows, ", ".join(names[:3]))
        with atomic_file(path, ADVICE) as file:
            np.savez(file, cells=found[0], starts=found[1])
    return LabelledCorpus(*found, fingerprint, names)


def _open(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read cells and starts; None where the file is not there or not whole: reading checks its CRC."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            cells, starts = stored["cells"], stored["starts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (cells, starts) if cells.dtype == CELL and starts.size and starts[-1] == len(cells) else None


def _tokenized(
    hashed: Sequence[HashedSource],
    fields: tuple[str, str],
    tokenizer: PreTrainedTokenizerFast,
    backend: Tokenizer,
    progress: Progress,
) -> Iterator[LabelledRow]:
    before, total = 0, sum(item.size for item in hashed)
    with report_progress("tokenizing", total, progress) as advance:
        for item in hashed:

            def on_position(position: int, before: int = before) -> None:
                advance(before + position)

            read = read_rows(item.source, fields, on_position)
            if fields == IDS:
                yield from (_check_ids(place, values[0], values[1], len(tokenizer)) for place, values in read)
            else:
                while part := list(islice(read, ROWS_AT_ONCE)):
                    yield from _encode(part, backend, tokenizer.eos_token_id)
            item.check_unchanged()
            before += item.size
            advance(before)


def _encode(
    part: list[tuple[str, list[Any]]], backend: Tokenizer, eos_token_id: int
) -> Iterator[LabelledRow]:
    """Tokenize prompts and completions, each alone; an end-of-text token ends the completion."""
    texts = [require_texts(place, COMPLETION, values) for place, values in part]
    for (place, _), (_, completion) in zip(part, texts, strict=True):
        if not completion:
            raise InputError(f"{place}: completion: expected text, got none")
    encoded = [
        [encoding.ids for encoding in backend.encode_batch_fast(column, add_special_tokens=False)]
        for column in map(list, zip(*texts, strict=True))
    ]
    for prompt, completion in zip(*encoded, strict=True):
        ids = [*prompt, *completion, eos_token_id]
        yield ids, [*[NOT_ASKED] * len(prompt), *completion, eos_token_id], [0] * len(ids)


def _check_ids(place: str, ids: Any, labels: Any, vocab_size: int) -> LabelledRow:
    checks: tuple[tuple[str, Any, Callable[[int], bool], str], ...] = (
        ("input_ids", ids, lambda number: 0 <= number < vocab_size, f"0 to {vocab_size - 1}"),
        (
            "labels",
            labels,
            lambda number: number == NOT_ASKED or 0 <= number < vocab_size,
            f"{NOT_ASKED} or 0 to {vocab_size - 1}",
        ),
    )
    for name, values, fits, what in checks:
        if not isinstance(values, list) or not values:
            raise InputError(
                f"{place}: {name}: expected a list of whole numbers, got {type(values).__name__}"
            )
        for number in values:
            if type(number) is not int or not fits(number):
                raise InputError(f"{place}: {name}: expected {what}, got {number!r:.20}")
    if len(ids) != len(labels):
        raise InputError(f"{place}: labels: expected {len(ids)}, as many as input_ids, got {len(labels)}")
    if all(label == NOT_ASKED for label in labels[1:]):
        raise InputError(f"{place}: labels: expected one to ask for after the first token, got none")
    return ids, labels, [0] * len(ids)
