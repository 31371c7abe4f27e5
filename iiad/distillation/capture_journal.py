"""A capture that is not finished yet: which shards are whole, a line each, to go on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iiad.artefacts import write_whole
from iiad.errors import InputError
from iiad.progress import say

from .signal_record import RECORD, ShardRecord, SignalRecord, shard_name
from .signal_shards import HOW_TO_GO_ON

__all__ = ["JOURNAL", "CaptureJournal", "file_sha256", "require_signal_folder", "sole_writer"]

JOURNAL = "signals.partial.jsonl"
"""Beside the shards of a capture that is not finished."""

READ_BYTES = 1 << 20


def require_signal_folder(folder: str | Path, resume: bool) -> Path:
    """The folder, if signals can be written there. Raises InputError for one that holds anything else.

    That is: finished signals, unfinished ones without `resume`, other files. Nothing is written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    if (folder / RECORD).exists():
        raise InputError(f"{folder}: holds finished signals; nothing was changed; name another folder")
    if (folder / JOURNAL).exists():
        if not resume:
            raise InputError(
                f"{folder}: holds an unfinished capture; go on with --resume, or name another folder"
            )
        return folder
    # What a kill can leave before the journal is there begins with a dot.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no capture; name another folder")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{folder}: {there} cannot be written to")
    if resume:
        say(f"{folder}: nothing to resume; starting afresh")
    return folder


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other captures out of a folder, made if need be, and clear away what a killed one left half-written.

    Raises InputError where another one is at work, or the folder cannot be made.
    """
    import fcntl  # not on Windows, where signals can still be read

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: is being written by another capture") from None
        except OSError:  # a file system without locks
            pass
        for pattern in (f".{JOURNAL}-*", f".{RECORD}-*", ".shard-*.tmp"):
            for path in folder.glob(pattern):
                path.unlink()
        yield
    finally:
        os.close(descriptor)


class CaptureJournal:
    """The shards of a capture that are whole, each noted once its file is on disk under its name.

    The first line says what is captured. A line that was cut off, which only the last one can be, is dropped.
    """

    def __init__(self, folder: Path, record: SignalRecord):
        """record: what is to be captured, without shards."""
        self.folder = folder
        self.path = folder / JOURNAL
        self.record = record
        self.shards: dict[int, ShardRecord] = {}

    def begin(self) -> None:
        """Begin, or go on from what is there, every shard of it hashed again.

        A shard that is missing or damaged counts as not captured. Raises InputError where what is there is of another
        teacher, of other data or settings, naming what differs.
        """
        if self.path.exists():
            self._read()
        lines = [self._heading(), *(shard.model_dump_json() for _, shard in sorted(self.shards.items()))]
        write_whole(self.path, "".join(f"{line}\n" for line in lines))

    def add(self, shard: ShardRecord) -> None:
        """Note a shard that is whole. Raises InputError where that fails; those before it stay."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(shard.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; {HOW_TO_GO_ON}") from None
        self.shards[shard.index] = shard

    def finish(self) -> SignalRecord:
        """Write the record of all shards, which makes the folder signals, and only then forget the journal."""
        record = self.record.model_copy(update={"shards": [self.shards[i] for i in sorted(self.shards)]})
        record.save(self.folder / RECORD)
        self.path.unlink(missing_ok=True)
        return record

    def _heading(self) -> str:
        # The version is that of who finishes; names may change where content does not.
        fields = self.record.model_dump(
            exclude={"kind": True, "shards": True, "iiad_version": True}
            | {"teacher": {"name"}, "data": {"names"}}
        )
        return json.dumps({"kind": "unfinished signals", **fields})

    def _read(self) -> None:
        first, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{self.path}: cannot be read; name another folder")
        differences = list(_differences(found, json.loads(self._heading())))
        if differences:
            raise InputError(f"{self.folder}: cannot be resumed: {'; '.join(differences)}")
        for shard in _whole_lines(lines):
            path = self.folder / shard_name(shard.index)
            if not path.exists() or file_sha256(path) != shard.sha256:
                say(f"{path}: is missing or damaged; it is captured again")
            else:
                self.shards[shard.index] = shard


def _whole_lines(lines: list[str]) -> Iterator[ShardRecord]:
    for line in lines:
        try:
            yield ShardRecord.model_validate_json(line)
        except ValidationError:
            return  # cut off; nothing whole comes after it


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:12] if is_hash else repr(value)


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal. Raises InputError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
