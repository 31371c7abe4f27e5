"""Content hashes of sources, remembered in the cache folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iiad.errors import InputError
from iiad.files import file_sha256, read_json, write_text
from iiad.progress import Progress, report_progress

from .sources import Source

__all__ = ["HashedSource", "hash_sources"]

HASHES_FILE = "hashes.json"  # path -> state and sha256
SETTLED_NS = 2_000_000_000
SHOWN_FROM = 1 << 30  # bytes, about a second; fewer are hashed in silence

FileState = tuple[str, int, int, int, int]
"""Path, size in bytes, mtime and ctime in nanoseconds, inode: while these stay, the content is taken to."""


@dataclass(frozen=True)
class HashedSource:
    """A source, its content's sha256 in hexadecimal, and the state of the file just before it was hashed."""

    source: Source
    sha256: str
    state: FileState

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.state[1]

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file is no longer the one that was hashed."""
        if _state(self.source) != self.state:
            raise InputError(f"{self.source.path}: changed while it was being read; start again")


def hash_sources(sources: Sequence[Source], folder: Path, progress: Progress = False) -> list[HashedSource]:
    """Hash the content of every source, or recall the hash from `folder` if the file's state is as it was.

    Raises InputError where a file cannot be read, or changes meanwhile.
    """
    recalled, settled, hashed, done = _recall(folder), {}, [], 0
    states = [_state(source) for source in sources]
    total = sum(state[1] for state in states if state not in recalled)
    with report_progress("hashing", total, progress if total >= SHOWN_FROM else False) as advance:
        for source, state in zip(sources, states, strict=True):
            sha256 = recalled.get(state)
            if sha256 is None:
                started = time.time_ns()
                sha256 = file_sha256(source.path)
                done += state[1]
                advance(done)
                # A file written to a moment ago may change again without its clock ticking: do not trust that.
                if max(state[2:4]) < started - SETTLED_NS:
                    settled[state[0]] = [*state[1:], sha256]
            hashed.append(HashedSource(source, sha256, state))
            hashed[-1].check_unchanged()
    if settled:
        entries = {path: [*state, sha256] for (path, *state), sha256 in _recall(folder).items()}
        with contextlib.suppress(InputError):  # it only saves time: of two processes one may be forgotten
            write_text(folder / HASHES_FILE, json.dumps(entries | settled))
    return hashed


def _state(source: Source) -> FileState:
    try:
        stat = source.path.stat()
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror}") from error
    return str(source.path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _recall(folder: Path) -> dict[FileState, str]:
    """Return the remembered hashes; none if their file is missing or damaged."""
    try:
        entries = read_json(folder / HASHES_FILE)
        return {
            (path, int(size), int(mtime), int(ctime), int(inode)): str(sha256)
            for path, (size, mtime, ctime, inode, sha256) in entries.items()
        }
    except (ValueError, TypeError):
        return {}
