"""Read files safely, hash them, and write files and folders whole or not at all. The only place that does.

Needs neither torch nor transformers. Every new file gets the mode that the umask leaves.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from .errors import InputError, one_line, shorten

__all__ = [
    "MOST_JSON_BYTES",
    "append_line",
    "atomic_file",
    "atomic_folder",
    "file_sha256",
    "parse_json",
    "read_json",
    "read_json_text",
    "read_whole",
    "write_text",
]

READ_BYTES = 1 << 20
MOST_JSON_BYTES, MOST_JSON_VALUES = 1 << 26, 1 << 22  # a profile of 4,500 batches of a model of 24 layers


@contextmanager
def atomic_file(path: str | Path, advice: str = "") -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` when the block ends, whole and on disk; until then nothing changes.

    It is written beside its place under a hidden name that ends in .tmp, which is removed on any error.
    advice: ends the message. Raises InputError where the file cannot be written, a full disk for one.
    """
    path = Path(path)
    stage = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(stage, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
    except BaseException as error:
        with suppress(OSError):
            stage.unlink()
        if isinstance(error, OSError):
            raise InputError(
                f"{path}: cannot be written: {error.strerror or one_line(error)}{advice}"
            ) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all. Raises InputError where it cannot be written."""
    with atomic_file(path) as file:
        file.write(text.encode())


def append_line(path: str | Path, line: str, advice: str = "") -> None:
    """Append a line to a text file, on disk before the return. Raises InputError where it cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}{advice}") from error


@contextmanager
def atomic_folder(destination: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `destination` that takes its name, on disk, when the block ends, and only then.

    Raises InputError where something cannot be written, a full disk for one; nothing is left behind then.
    """
    destination = Path(destination)
    stage = destination.absolute().with_name(f".{destination.name}-{secrets.token_hex(4)}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir()
        yield stage
        mode = stage.stat().st_mode & 0o666
        for path in [*stage.rglob("*"), stage]:
            if path.is_file():
                path.chmod(mode)  # safetensors keeps its files from others, whatever the umask
            _flush(path)
        if destination.is_dir():
            destination.rmdir()  # empty, or this raises
        os.replace(stage, destination)
    except InputError:
        raise
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # the latter two by torch, safetensors on a full disk
        raise InputError(f"{destination}: cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole(path: str | Path, most_bytes: int, errors: str = "strict") -> str:
    """Read a UTF-8 text file. Raises InputError: no such file, none that can be read, or one of more bytes.

    errors: as of bytes.decode.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise InputError(f"{path}: expected at most {most_bytes:,} bytes, got more")
        return content.decode(errors=errors)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got {error.reason} at byte {error.start}") from None


def read_json_text(path: str | Path, errors: str = "strict") -> str:
    """Read a file that holds JSON. Raises InputError as `read_whole`, and for one of more than 4 million values.

    Those may take a GB of memory and seconds.
    """
    text = read_whole(path, MOST_JSON_BYTES, errors)
    if sum(map(text.count, ",[{")) > MOST_JSON_VALUES:
        raise InputError(f"{path}: expected at most {MOST_JSON_VALUES:,} values, got more")
    return text


def parse_json(text: str, where: object) -> Any:
    """Parse JSON. Raises InputError, which begins with `where`, also for a key that stands twice in an object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise InputError(f"{where}: {shorten(twice)} is there twice")
        return fields

    try:
        return json.loads(text, object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read as JSON: {one_line(error)}") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises InputError: no such file, too large, other content."""
    fields = parse_json(read_json_text(path), path)
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected a JSON object, got a {type(fields).__name__}")
    return fields


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's content in hexadecimal. Raises InputError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
