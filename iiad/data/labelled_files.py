"""Labelled rows of files: prompts and completions, or token ids and labels, found by the first row's fields."""

from __future__ import annotations

import contextlib
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
from .documents import (
    OnPosition,
    cut_pieces,
    parse_object,
    read_columns,
    read_documents,
    read_lines,
    require_text,
)
from .hashes import HashedSource
from .labelled import CELL, FORMAT, NOT_ASKED, LabelledCorpus, LabelledRow, arrange_rows
from .sources import Source
from .tokenizers import tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["labelled_fields", "pack_rows", "read_texts"]

PAIR = ("prompt", "completion")
IDS = ("input_ids", "labels")
ROWS_AT_ONCE = 4096


def labelled_fields(source: Source, text_field: str) -> tuple[str, str] | None:
    """Return the two fields that a file's first row asks by; None for text, and for what is neither."""
    names: list[str] = []
    with contextlib.suppress(InputError):  # reading it as text says what is wrong
        if source.kind == "jsonl":
            names = [
                name
                for place, line in islice(read_lines(source), 1)
                for name in parse_object(line, place, f"{place}: expected a JSON object, got")
            ]
        elif source.kind == "parquet":
            next(read_columns(source, [], check=lambda schema: names.extend(schema.names)), None)
    if text_field in names:
        return None
    return next((fields for fields in (PAIR, IDS) if set(fields) <= set(names)), None)


def read_texts(source: Source, text_field: str) -> Iterator[Iterator[str]]:
    """Yield all text of a file as `read_documents` does, prompts and completions as documents of their own.

    Raises InputError, too, for rows of token ids.
    """
    fields = labelled_fields(source, text_field)
    if fields is None:
        yield from read_documents(source, text_field)
        return
    if fields == IDS:
        raise InputError(f"tokenizer.path: expected the tokenizer of {source.path}, whose rows are token ids")
    for place, values in _read_pairs(source, fields):
        for name, value in zip(fields, values, strict=True):
            yield cut_pieces([require_text({name: value}, name, f"{place}: {name}: expected a string, got")])


def pack_rows(
    hashed: Sequence[HashedSource],
    fields: tuple[str, str],
    tokenizer: PreTrainedTokenizerFast,
    backend: Tokenizer,
    folder: Path,
    progress: Progress = True,
) -> LabelledCorpus:
    """Turn rows of files into labelled tokens, or find them in the cache folder.

    fields: `PAIR`, whose completion and a token that ends it are asked for, or `IDS`. backend: tokenizes.
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

            read = _read_pairs(item.source, fields, on_position)
            if fields == IDS:
                yield from (_check_ids(place, values[0], values[1], len(tokenizer)) for place, values in read)
            else:
                while part := list(islice(read, ROWS_AT_ONCE)):
                    yield from _encode(part, backend, tokenizer.eos_token_id)
            item.check_unchanged()
            before += item.size
            advance(before)


def _read_pairs(
    source: Source, fields: tuple[str, str], on_position: OnPosition = lambda position: None
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the place and the values of two fields of every row. Raises InputError for a row without them."""
    if source.kind == "parquet":
        yield from read_columns(source, list(fields), on_position=on_position)
        return
    for place, line in read_lines(source, on_position=on_position):
        expected = f"{place}: expected fields {fields[0]} and {fields[1]}, as in the first row, got"
        record = parse_object(line, place, expected)
        if not set(fields) <= set(record):
            raise InputError(f"{expected} {', '.join(sorted(record)[:10]) or 'none'}")
        yield place, [record[name] for name in fields]


def _encode(
    part: list[tuple[str, list[Any]]], backend: Tokenizer, eos_token_id: int
) -> Iterator[LabelledRow]:
    """Tokenize prompts and completions, each alone; an end-of-text token ends the completion."""
    texts = [
        [
            require_text({name: text}, name, f"{place}: {name}: expected a string, got")
            for name, text in zip(PAIR, values, strict=True)
        ]
        for place, values in part
    ]
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
