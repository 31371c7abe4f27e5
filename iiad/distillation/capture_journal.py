"""An unfinished capture: its whole shards, a line each, to resume from."""

from __future__ import annotations

import os
from pathlib import Path

from iiad.artefacts import Journal
from iiad.errors import InputError
from iiad.files import file_sha256
from iiad.progress import print_status

from .signal_record import RECORD, ShardRecord, SignalRecord, shard_name

__all__ = ["JOURNAL", "CaptureJournal", "remove_leftovers", "require_signal_folder"]

JOURNAL = "signals.partial.jsonl"
"""Beside the shards of a capture that is not finished."""


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
        print_status(f"{folder}: nothing to resume; starting afresh")
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden files that a killed capture left half-written."""
    for pattern in (f".{JOURNAL}-*", f".{RECORD}-*", ".shard-*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()


class CaptureJournal:
    """The shards of a capture that are whole, each noted once its file is on disk under its name."""

    def __init__(self, folder: Path, record: SignalRecord):
        """record: what is to be captured, without shards."""
        self.folder = folder
        self.record = record
        self.shards: dict[int, ShardRecord] = {}
        # The version is that of who finishes; names may change where content does not.
        fields = record.model_dump(
            exclude={"kind": True, "shards": True, "iiad_version": True}
            | {"teacher": {"name"}, "data": {"names"}}
        )
        self._journal = Journal(folder / JOURNAL, {"kind": "unfinished signals", **fields}, ShardRecord)

    def begin(self) -> None:
        """Begin, or go on from what is there, every shard of it hashed again.

        A shard that is missing or damaged counts as not captured. Raises InputError where what is there is of another
        teacher, of other data or settings, naming what differs.
        """
        for shard in self._journal.read():
            path = self.folder / shard_name(shard.index)
            if not path.exists() or file_sha256(path) != shard.sha256:
                print_status(f"{path}: is missing or damaged; it is captured again")
            else:
                self.shards[shard.index] = shard
        self._journal.start([shard for _, shard in sorted(self.shards.items())])

    def add(self, shard: ShardRecord) -> None:
        """Note a shard that is whole. Raises InputError where that fails; those before it stay."""
        self._journal.append(shard)
        self.shards[shard.index] = shard

    def finish(self) -> SignalRecord:
        """Write the record of all shards, which makes the folder signals, and only then remove the journal."""
        record = self.record.model_copy(update={"shards": [self.shards[i] for i in sorted(self.shards)]})
        record.save(self.folder / RECORD)
        self._journal.remove()
        return record
