"""Rows of files: which fields their first row asks by, their values, and their text for a tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any

from iiad.errors import InputError

from .docstrings import read_docstrings
from .documents import (
    OnPosition,
    cut_pieces,
    parse_object,
    read_columns,
    read_documents,
    read_lines,
    require_text,
)
from .sources import FileSource, ParallelSource, Source

__all__ = ["COMPLETION", "IDS", "PAIR", "read_rows", "read_texts", "require_texts", "row_fields"]

COMPLETION = ("prompt", "completion")
IDS = ("input_ids", "labels")
PAIR = ("source", "target")


def row_fields(source: FileSource, text_field: str) -> tuple[str, str] | None:
    """Return the two fields that a file's first row asks by; None for text, and for what is neither."""
    if isinstance(source, ParallelSource) or source.kind == "docstrings":
        return PAIR
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
    return next((fields for fields in (COMPLETION, IDS, PAIR) if set(fields) <= set(names)), None)


def read_texts(source: FileSource, text_field: str) -> Iterator[Iterator[str]]:
    """Yield all text of a file as `read_documents` does, the two texts of a row as documents of their own.

    Raises InputError, too, for rows of token ids.
    """
    fields = row_fields(source, text_field)
    if fields is None:
        assert isinstance(source, Source)
        yield from read_documents(source, text_field)
        return
    if fields == IDS:
        raise InputError(f"tokenizer.path: expected the tokenizer of {source.name}, whose rows are token ids")
    for place, values in read_rows(source, fields):
        for text in require_texts(place, fields, values):
            yield cut_pieces([text])


def read_rows(
    source: FileSource, fields: tuple[str, str], on_position: OnPosition = lambda position: None
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the place and the values of two fields of every row. Raises InputError for a row without them."""
    if isinstance(source, ParallelSource):
        yield from _read_parallel(source, on_position)
    elif source.kind == "docstrings":
        yield from read_docstrings(source)
    elif source.kind == "parquet":
        yield from read_columns(source, list(fields), on_position=on_position)
    else:
        for place, line in read_lines(source, on_position=on_position):
            expected = f"{place}: expected fields {fields[0]} and {fields[1]}, as in the first row, got"
            record = parse_object(line, place, expected)
            if not set(fields) <= set(record):
                raise InputError(f"{expected} {', '.join(sorted(record)[:10]) or 'none'}")
            yield place, [record[name] for name in fields]


def _read_parallel(source: ParallelSource, on_position: OnPosition) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of two files in pairs, without their ends."""
    counts = [0, 0]
    sources = read_lines(source.source, on_position=on_position, blank=True)
    for pair in zip_longest(sources, read_lines(source.target, blank=True)):
        for side, found in enumerate(pair):
            counts[side] += found is not None
        if None not in pair:
            (place, first), (_, second) = pair
            yield place, [first.rstrip("\r\n"), second.rstrip("\r\n")]
    if counts[0] != counts[1]:
        raise InputError(
            f"{source.target.path}: expected {counts[0]} lines, as many as {source.source.path}, got {counts[1]}"
        )


def require_texts(place: str, fields: tuple[str, str], values: list[Any]) -> list[str]:
    """Return the values of two fields. Raises InputError where one is no string."""
    return [
        require_text({name: value}, name, f"{place}: {name}: expected a string, got")
        for name, value in zip(fields, values, strict=True)
    ]
