"""Write files and folders whole or not at all; hash and lock them. The only place that does.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import InputError, one_line

__all__ = [
    "append_line",
    "atomic_file",
    "atomic_folder",
    "file_sha256",
    "lock_folder",
    "read_json",
    "require_new_file",
    "require_new_folder",
    "write_text",
]

READ_BYTES = 1 << 20


@contextmanager
def atomic_file(path: str | Path, advice: str = "") -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` when the block ends, whole and on disk; until then nothing changes.

    It is written beside its place under a hidden name that ends in .tmp, which is removed on any error.
    advice: ends the message. Raises InputError where the file cannot be written, a full disk for one.
    """
    path = Path(path)
    stage = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, stage = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(stage, 0o644)
        os.replace(stage, path)
    except BaseException as error:
        if stage is not None:
            Path(stage).unlink(missing_ok=True)
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
    stage = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
        yield stage
        stage.chmod(0o755)
        for path in [*stage.rglob("*"), stage]:
            _flush(path)
        if destination.is_dir():
            destination.rmdir()  # empty, or this raises
        os.replace(stage, destination)
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise InputError(f"{destination}: cannot be written: {one_line(error)}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises InputError: no such file, or none that can be read as one."""
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
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


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes that lock the folder out of it while the block runs; make it if need be.

    Raises InputError where another process holds the lock, or the folder cannot be made.
    """
    import fcntl  # not on Windows, where artefacts can still be read

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: is being written by another process") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def require_new_file(path: str | Path, overwrite: bool = False) -> Path:
    """Return the path if a new file can be written there. Raises InputError otherwise."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; name another file, or pass --overwrite")
    _require_writable(path)
    return path


def require_new_folder(folder: str | Path) -> Path:
    """Return the folder if it can be written and holds nothing. Raises InputError otherwise."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already and is not empty; nothing was overwritten")
    _require_writable(folder)
    return folder


def _require_writable(path: Path) -> None:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{path}: {there} cannot be written to")
