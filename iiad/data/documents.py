"""The documents of a source, streamed. A document is an iterator of pieces: text of bounded length."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from iiad.errors import InputError, one_line

from .sources import Source

__all__ = ["PIECE_CHARS", "cut_pieces", "read_documents"]

PIECE_CHARS = 1 << 20
READ_BYTES = 1 << 18
ROWS_PER_BATCH = 256

_LAST_CUT = re.compile(r".+(?:(?<=\S\n)(?=\S)|(?= \S))", re.DOTALL)

OnPosition = Callable[[int], None]
"""Told how many bytes of the file, as it lies on disk, have been read."""


def read_documents(
    source: Source,
    text_field: str = "text",
    *,
    piece_chars: int = PIECE_CHARS,
    on_position: OnPosition | None = None,
) -> Iterator[Iterator[str]]:
    r"""Read a source one document at a time, each as pieces that join to the document's exact text.

    Memory does not grow with the file; of jsonl one line must fit, of parquet the text of one row group. A
    byte order mark at the start of the file is dropped, `\r\n` stays as it is. Use up one document before
    asking for the next.

    Args:
        source: the file to read.
        text_field: the jsonl field or parquet column with the text.
        piece_chars: the length that no piece exceeds, in characters; see `cut_pieces`.
        on_position: called now and then with the bytes of the file read so far.

    Raises:
        InputError: naming the file and line, row or byte: it cannot be read, is not UTF-8, holds a NUL byte,
            is a corrupt or truncated gzip or parquet file, a line is not a JSON object, or the text field is
            missing or not a string.
    """
    report = on_position or (lambda position: None)
    if source.kind == "text":
        yield cut_pieces(_decoded(source, report), piece_chars)
        return
    read = _jsonl_texts if source.kind == "jsonl" else _parquet_texts
    for text in read(source, text_field, report):
        yield cut_pieces(_slices(text), piece_chars)


def cut_pieces(texts: Iterable[str], piece_chars: int = PIECE_CHARS) -> Iterator[str]:
    """Join `texts` and cut the whole anew into pieces of 1 to `piece_chars` characters.

    A cut falls, as late as it can, after a newline between two characters that are not white space or before
    the space that leads a word: byte-level tokenizers do not merge across either. Failing both, at the limit.
    Where the cuts fall depends only on the joined text, so that every kind of file gives the same tokens.
    """
    buffer = ""
    for text in texts:
        buffer += text
        while len(buffer) > piece_chars:
            cut = _place_of_cut(buffer, piece_chars)
            yield buffer[:cut]
            buffer = buffer[cut:]
    if buffer:
        yield buffer


def _place_of_cut(buffer: str, limit: int) -> int:
    found = _LAST_CUT.match(buffer, 0, limit)
    return found.end() if found else limit


def _slices(text: str) -> Iterator[str]:
    for start in range(0, len(text), READ_BYTES):
        yield text[start : start + READ_BYTES]


@contextmanager
def _opened(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file as it lies on disk, and its content; faults of either become `InputError`."""
    try:
        with open(source.path, "rb") as raw:
            if not source.compressed:
                yield raw, raw
                return
            with gzip.GzipFile(fileobj=raw) as content:
                yield raw, content  # type: ignore[misc]  # GzipFile reads as IO[bytes] does
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{source.path}: corrupt or truncated gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror or error}") from error


def _decoded(source: Source, report: OnPosition) -> Iterator[str]:
    """The text of a whole file in parts of about `READ_BYTES`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the chunk in the content
    with _opened(source) as (raw, content):
        while True:
            chunk = content.read(READ_BYTES)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
            text = _checked(source, chunk, decoder, offset, pending)
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not chunk:
                return
            offset += len(chunk)
            report(raw.tell())


def _checked(
    source: Source,
    chunk: bytes,
    decoder: codecs.IncrementalDecoder,
    offset: int,
    pending: int,
    where: str = "",
) -> str:
    """Decode `chunk`, or say which byte is not text; `where` is ": line N" for a file of lines."""
    nul = chunk.find(b"\0")
    if nul >= 0:
        found = f"NUL byte at byte {offset + nul}: a binary or UTF-16 file"
        raise InputError(f"{source.path}{where}: {found}; accepted: UTF-8 text")
    try:
        return decoder.decode(chunk, final=not chunk or bool(where))
    except UnicodeDecodeError as error:
        found = f"invalid UTF-8 at byte {offset - pending + error.start}: {error.reason}"
        raise InputError(f"{source.path}{where}: {found}; accepted: UTF-8 text") from error


def _jsonl_texts(source: Source, text_field: str, report: OnPosition) -> Iterator[str]:
    offset = reported = 0
    with _opened(source) as (raw, content):
        for number, line in enumerate(content, 1):
            decoder = codecs.getincrementaldecoder("utf-8")()
            where = f": line {number}"
            text = _checked(source, line, decoder, offset, 0, where)
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(line)
            if text.strip():
                yield _field_of_line(text, text_field, f"{source.path}{where}")
            if offset - reported >= READ_BYTES:
                report(raw.tell())
                reported = offset


def _field_of_line(line: str, text_field: str, place: str) -> str:
    accepted = f"accepted: one JSON object a line with a string field {text_field!r}"
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: invalid JSON at column {error.colno}: {error.msg}; {accepted}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{place}: JSON beyond what can be parsed: {error}; {accepted}") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: found a JSON {_json_type(record)}; {accepted}")
    if text_field not in record:
        raise InputError(f"{place}: no field {text_field!r}; fields found: {_listed(record)}; {accepted}")
    text = record[text_field]
    if not isinstance(text, str):
        raise InputError(f"{place}: field {text_field!r} is a JSON {_json_type(text)}; {accepted}")
    if not text.isascii():
        _check_surrogates(text, f"{place}: field {text_field!r}")
    return text


def _check_surrogates(text: str, place: str) -> None:
    r"""JSON can escape half of a character (`"\ud83d"`), which no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place} holds half a surrogate pair at character {error.start}") from error


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _listed(names: Iterable[str]) -> str:
    """At most ten names, quoted, for an error message."""
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - 10} more" if len(quoted) > 10 else ""
    return (", ".join(quoted[:10]) + more) or "none"


def _parquet_texts(source: Source, text_field: str, report: OnPosition) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        # Without these two the whole file may be read ahead.
        streaming = {"pre_buffer": False, "buffer_size": READ_BYTES}
        with open(source.path, "rb") as raw, pyarrow.parquet.ParquetFile(raw, **streaming) as file:
            _check_column(source, file.schema_arrow, text_field)
            size, num_rows = source.path.stat().st_size, file.metadata.num_rows
            batches = file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[text_field], use_threads=False)
            for batch in batches:
                for value in batch.column(0):
                    row += 1
                    text = value.as_py()
                    if text is None:
                        accepted = f"accepted: a string in column {text_field!r} of every row"
                        raise InputError(f"{source.path}: row {row}: null; {accepted}")
                    yield text
                report(size * row // num_rows)
    except UnicodeDecodeError as error:
        found = f"invalid UTF-8 at byte {error.start} of column {text_field!r}"
        raise InputError(f"{source.path}: row {row}: {found}; accepted: UTF-8 text") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{source.path}: corrupt or unreadable parquet file: {one_line(error)}") from error


def _check_column(source: Source, schema: Any, text_field: str) -> None:
    from pyarrow import types

    accepted = f"accepted: a parquet file with a string column {text_field!r}"
    if text_field not in schema.names:
        found = f"no column {text_field!r}; columns found: {_listed(schema.names)}"
        raise InputError(f"{source.path}: {found}; {accepted}")
    column = schema.field(text_field).type
    value = column.value_type if types.is_dictionary(column) else column
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
        raise InputError(f"{source.path}: column {text_field!r} is of type {column}; {accepted}")
