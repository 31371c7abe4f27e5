"""Content hashes of sources, remembered in the cache folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iiad.errors import InputError
from iiad.files import file_sha256, write_text
from iiad.progress import Progress, report_progress

from .sources import Source

__all__ = ["HashedSource", "hash_sources"]

HASHES_FILE = "hashes.json"  # path -> state and sha256
SETTLED_NS = 2_000_000_000
SHOWN_FROM = 1 << 30  # bytes, about a second; fewer are hashed in silence

FileState = list[int]
"""Size in bytes, mtime and ctime in nanoseconds, inode: while these stay, the content is taken to."""


@dataclass(frozen=True)
class HashedSource:
    """A source, its content's sha256 in hexadecimal, and the state of the file just before it was hashed."""

    source: Source
    sha256: str
    state: FileState

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.state[0]

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file is no longer the one that was hashed."""
        if _state(self.source) != self.state:
            raise InputError(f"{self.source.path}: changed while it was being read; start again")


def hash_sources(sources: Sequence[Source], folder: Path, progress: Progress = False) -> list[HashedSource]:
    """Hash the content of every source, or recall the hash from `folder` if the file's state is as it was.

    Raises:
        InputError: a file cannot be read, or changes meanwhile.
    """
    remembered = _remembered(folder)
    states = [_state(source) for source in sources]
    known = [
        remembered.get(_place(source), [])[:4] == state for source, state in zip(sources, states, strict=True)
    ]
    total = sum(state[0] for state, is_known in zip(states, known, strict=True) if not is_known)
    hashed, settled, done = [], {}, 0
    with report_progress("hashing", total, progress if total >= SHOWN_FROM else False) as advance:
        for source, state, is_known in zip(sources, states, known, strict=True):
            started = time.time_ns()
            sha256 = remembered[_place(source)][4] if is_known else file_sha256(source.path)
            hashed.append(HashedSource(source, sha256, state))
            hashed[-1].check_unchanged()
            # A file written to a moment ago may change again without its clock ticking: do not trust that.
            if not is_known and max(state[1], state[2]) < started - SETTLED_NS:
                settled[_place(source)] = [*state, sha256]
            done += 0 if is_known else state[0]
            advance(done)
    if settled:
        # It only saves time: of two processes at once one may be forgotten.
        with contextlib.suppress(InputError):
            write_text(folder / HASHES_FILE, json.dumps({**_remembered(folder), **settled}))
    return hashed


def _place(source: Source) -> str:
    return str(source.path.resolve())


def _state(source: Source) -> FileState:
    try:
        stat = source.path.stat()
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror}") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remembered(folder: Path) -> dict[str, list]:
    """Return the entries of the hashes file; none if it is missing or damaged."""
    try:
        entries = json.loads((folder / HASHES_FILE).read_bytes())
        return {place: [*map(int, state), str(sha256)] for place, (*state, sha256) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
