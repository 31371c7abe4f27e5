"""The documents of a source, streamed. A document is an iterator of pieces: text of bounded length."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from iiad.errors import InputError, one_line
from iiad.files import parse_json

from .sources import Source

__all__ = ["PIECE_CHARS", "cut_pieces", "read_documents", "require_readable"]

PIECE_CHARS = 1 << 20
READ_BYTES = 1 << 18
ROWS_PER_BATCH = 256

_JSON_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
_JSON_TYPES |= {int: "a number", float: "a number"}
_LAST_CUT = re.compile(r".+(?:(?<=\S\n)(?=\S)|(?= \S))", re.DOTALL)

OnPosition = Callable[[int], None]
"""Called with the bytes of the file, as it lies on disk, that have been read."""


def read_documents(
    source: Source,
    text_field: str = "text",
    *,
    piece_chars: int = PIECE_CHARS,
    read_bytes: int = READ_BYTES,
    on_position: OnPosition = lambda position: None,
) -> Iterator[Iterator[str]]:
    r"""Read a source one document at a time, each as pieces that join to the document's exact text.

    Memory does not grow with the file; of jsonl one line must fit, of parquet the text of one row group. A
    byte order mark at the start of the file is dropped, `\r\n` stays as it is. Use up one document before
    asking for the next.

    text_field: the jsonl field or parquet column with the text. piece_chars: characters that no piece exceeds.
    read_bytes: to read at a time. on_position: called now and then.

    Raises InputError, naming the file and line, row or byte: it cannot be read, is not UTF-8, holds a NUL byte, is a
    corrupt or truncated gzip or parquet file, a line is not a JSON object, the text field is missing or no string.
    """
    if source.kind == "text":
        yield cut_pieces(_read_text(source, read_bytes, on_position), piece_chars)
        return
    read = _read_jsonl if source.kind == "jsonl" else _read_parquet
    for text in read(source, text_field, read_bytes, on_position):
        yield cut_pieces((text[at : at + read_bytes] for at in range(0, len(text), read_bytes)), piece_chars)


def require_readable(sources: Sequence[Source], text_field: str = "text") -> None:
    """Read the beginning of every source. Raises InputError with all that `read_documents` finds wrong with them."""
    problems = []
    for source in sources:
        try:
            documents = read_documents(source, text_field, piece_chars=1, read_bytes=1 << 12)
            next(next(documents, iter(())), None)
        except InputError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - 10} files more" if len(problems) > 10 else ""
        raise InputError("; ".join(problems[:10]) + more)


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
            found = _LAST_CUT.match(buffer, 0, piece_chars)
            cut = found.end() if found else piece_chars
            yield buffer[:cut]
            buffer = buffer[cut:]
    if buffer:
        yield buffer


@contextmanager
def _open(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open the file as it lies on disk, and its content; faults of either become `InputError`."""
    try:
        with open(source.path, "rb") as raw:
            if not source.compressed:
                yield raw, raw
                return
            with gzip.GzipFile(fileobj=raw) as content:
                yield raw, content  # type: ignore[misc]  # GzipFile reads as IO[bytes] does
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{source.path}: expected a whole gzip file, got {error}") from error
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror or error}") from error


def _decode(
    chunk: bytes, place: str, offset: int, decode: Callable[[bytes], str] = bytes.decode, pending: int = 0
) -> str:
    """Decode a chunk that begins at byte `offset`, or name the byte that is not text.

    pending: bytes before the chunk that `decode` still holds, of a character that was cut in two.
    """
    if (nul := chunk.find(b"\0")) >= 0:
        raise InputError(f"{place}: expected UTF-8 text, got NUL at byte {offset + nul}: binary or UTF-16")
    try:
        return decode(chunk)
    except UnicodeDecodeError as error:
        found = f"{error.reason} at byte {offset - pending + error.start}"
        raise InputError(f"{place}: expected UTF-8 text, got {found}") from error


def _read_text(source: Source, read_bytes: int, on_position: OnPosition) -> Iterator[str]:
    """Yield the text of a whole file in parts of about `read_bytes`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with _open(source) as (raw, content):
        while chunk := content.read(read_bytes):
            text = _decode(chunk, str(source.path), offset, decoder.decode, len(decoder.getstate()[0]))
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(chunk)
            on_position(raw.tell())
    pending = len(decoder.getstate()[0])
    _decode(b"", str(source.path), offset, lambda chunk: decoder.decode(chunk, final=True), pending)


def read_lines(
    source: Source,
    read_bytes: int = READ_BYTES,
    on_position: OnPosition = lambda position: None,
    blank: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield each line of a file, blank ones only if asked for, with the place that errors name."""
    offset = reported = 0
    with _open(source) as (raw, content):
        for number, line in enumerate(content, 1):
            place = f"{source.path}: line {number}"
            text = _decode(line, place, offset)
            text = text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)
            if blank or text.strip():
                yield place, text
            if offset - reported >= read_bytes:
                on_position(raw.tell())
                reported = offset


def _read_jsonl(source: Source, text_field: str, read_bytes: int, on_position: OnPosition) -> Iterator[str]:
    for place, line in read_lines(source, read_bytes, on_position):
        expected = f"{place}: expected a JSON object with a string field {text_field!r}, got"
        yield require_text(parse_object(line, place, expected), text_field, expected)


def parse_object(line: str, place: str, expected: str) -> dict[str, Any]:
    """Return the JSON object of a line. expected: the error message up to what was got."""
    record = parse_json(line, place)
    if not isinstance(record, dict):
        raise InputError(f"{expected} {_JSON_TYPES[type(record)]}")
    return record


def require_text(record: dict[str, Any], text_field: str, expected: str) -> str:
    """Return the string in a field. expected: the error message up to what was got."""
    if text_field not in record:
        raise InputError(f"{expected} fields {_listed(record)}")
    text = record[text_field]
    if not isinstance(text, str):
        raise InputError(f"{expected} {_JSON_TYPES.get(type(text), type(text).__name__)} in it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a character, as "\ud83d"
        raise InputError(f"{expected} half a surrogate pair at character {error.start}") from error
    return text


def _listed(names: Iterable[str]) -> str:
    """At most ten names, quoted, for an error message."""
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - 10} more" if len(quoted) > 10 else ""
    return (", ".join(quoted[:10]) + more) or "none"


def _read_parquet(source: Source, text_field: str, read_bytes: int, on_position: OnPosition) -> Iterator[str]:
    def check(schema: Any) -> None:
        _require_column(source, schema, text_field)

    for place, (text,) in read_columns(source, [text_field], read_bytes, on_position, check):
        if text is None:
            raise InputError(f"{place}: expected a string in column {text_field!r}, got null")
        yield text


def read_columns(
    source: Source,
    columns: list[str],
    read_bytes: int = READ_BYTES,
    on_position: OnPosition = lambda position: None,
    check: Callable[[Any], None] = lambda schema: None,
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the columns' values in each row of a parquet file, with the place that errors name.

    check: called with the file's schema before a row is read.
    """
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        # Without these two the whole file may be read ahead.
        streaming = {"pre_buffer": False, "buffer_size": read_bytes}
        with open(source.path, "rb") as raw, pyarrow.parquet.ParquetFile(raw, **streaming) as file:
            check(file.schema_arrow)
            size, num_rows = source.path.stat().st_size, file.metadata.num_rows
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns, use_threads=False):
                for values in zip(*(batch.column(name) for name in columns), strict=True):
                    row += 1
                    yield f"{source.path}: row {row}", [value.as_py() for value in values]
                on_position(size * row // num_rows)
    except UnicodeDecodeError as error:
        found = f"{error.reason} at byte {error.start} of column {columns[0]!r}"
        raise InputError(f"{source.path}: row {row}: expected UTF-8 text, got {found}") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{source.path}: expected a readable parquet file, got {one_line(error)}") from error


def _require_column(source: Source, schema: Any, text_field: str) -> None:
    from pyarrow import types

    expected = f"{source.path}: expected a string column {text_field!r}, got"
    if text_field not in schema.names:
        raise InputError(f"{expected} columns {_listed(schema.names)}")
    column = schema.field(text_field).type
    value = column.value_type if types.is_dictionary(column) else column
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
        raise InputError(f"{expected} type {column}")
