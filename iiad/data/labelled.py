"""Labelled rows: examples that ask for some of their tokens, of files or of generated tasks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from .sources import Source, TaskSource
from .tokenizers import tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["NOT_ASKED", "LabelledCorpus", "generate_rows", "labelled_fields", "pack_rows", "read_texts"]

NOT_ASKED = -100
"""Label of a token that is not asked for, as in transformers."""
PAIR = ("prompt", "completion")
IDS = ("input_ids", "labels")
FORMAT = 1
DEFAULT_ROWS = 4096
ROWS_AT_ONCE = 4096
_CELL = np.dtype([("token", "<u4"), ("label", "<i4"), ("group", "<u2")])


@dataclass(frozen=True, eq=False)
class LabelledCorpus:
    """Rows of tokens, each with labels: the token that is asked for after those before it, or `NOT_ASKED`.

    cells: (num_tokens,) records of token, label and group, row after row.
    starts: (num_documents + 1,), where the rows begin, and the end.
    fingerprint: sha256 of all that decides a row; of a generated task not of how many rows there are.
    grouped_by: what the groups count (length, operations, hops); None where there are none.
    """

    cells: np.ndarray
    starts: np.ndarray
    fingerprint: str
    names: tuple[str, ...] = field(repr=False)
    grouped_by: str | None = None

    tokens_per_byte = None
    """Bits per byte mean nothing where only some tokens are asked for."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.cells)

    @property
    def num_documents(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (num_documents,)."""
        return np.diff(self.starts)

    def row(self, number: int) -> np.ndarray:
        """Return the cells of a row; the label of its first token is never asked for."""
        return self.cells[self.starts[number] : self.starts[number + 1]]

    def rows_within(self, most: int | None) -> int:
        """Return how many rows end within the first `most` tokens, at least 1; None: all."""
        if most is None:
            return self.num_documents
        return max(1, int(np.searchsorted(self.starts, most, "right")) - 1)

    def targets(self, most: int) -> np.ndarray:
        """Return the tokens asked for among the first `most` tokens, (n,) int64."""
        labels = self.cells["label"][:most].astype(np.int64)
        return labels[labels >= 0]


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
        found = _arrange(rows, ", ".join(names[:3]))
        with atomic_file(path, ADVICE) as file:
            np.savez(file, cells=found[0], starts=found[1])
    return LabelledCorpus(*found, fingerprint, names)


def generate_rows(
    tasks: Sequence[TaskSource], tokenizer: PreTrainedTokenizerFast, num_rows: int | None = None
) -> LabelledCorpus:
    """Generate the rows of one or several tasks, in turn.

    num_rows: how many, where a task does not say; default 4,096. Raises InputError for a tokenizer that lacks a word
    of theirs, and for a split without questions.
    """
    vocabulary, words = tokenizer.get_vocab(), {word for source in tasks for word in source.task.words}
    if missing := sorted(words - set(vocabulary)):
        names = " ".join(source.name for source in tasks)
        raise InputError(f"tokenizer: expected one with the words of {names}, got none for {missing[0]!r}")
    given = [source.task.rows for source in tasks]
    num_rows = num_rows or DEFAULT_ROWS
    if None not in given:
        num_rows = sum(rows or 0 for rows in given)
    generators = [islice(source.task.generate(source.split), source.task.rows) for source in tasks]
    drawn = islice(_in_turn(generators), num_rows)
    rows = (
        (
            [vocabulary[word] for word in row.words],
            [NOT_ASKED if label is None else vocabulary[label] for label in row.labels],
            row.groups,
        )
        for row in drawn
    )
    of_all = [[source.name, source.split] for source in tasks] + [tokenizer_fingerprint(tokenizer), FORMAT]
    fingerprint = hashlib.sha256(json.dumps(of_all).encode()).hexdigest()
    units = sorted({source.task.grouped_by for source in tasks})
    all_names = tuple(source.name for source in tasks)
    return LabelledCorpus(*_arrange(rows, ", ".join(all_names)), fingerprint, all_names, " or ".join(units))


def _in_turn(generators: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """Yield from each in turn; those that end are left out."""
    live = list(generators)
    while live:
        for generator in list(live):
            try:
                yield next(generator)
            except StopIteration:
                live.remove(generator)


LabelledRow = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Ids, labels and groups, each (T,)."""


def _arrange(rows: Iterable[LabelledRow], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return cells and starts. Raises InputError for no rows."""
    parts, lengths = [], [0]
    for ids, labels, groups in rows:
        cells = np.zeros(len(ids), _CELL)
        cells["token"], cells["label"], cells["group"] = ids, labels, groups
        cells["label"][0] = NOT_ASKED  # nothing comes before it
        parts.append(cells)
        lengths.append(len(ids))
    if not parts:
        raise InputError(f"inputs: expected at least one row, got none in {where}")
    return np.concatenate(parts), np.cumsum(lengths)


def _open(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read cells and starts; None where the file is not there or not whole: reading checks its CRC."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            cells, starts = stored["cells"], stored["starts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (cells, starts) if cells.dtype == _CELL and starts.size and starts[-1] == len(cells) else None


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
