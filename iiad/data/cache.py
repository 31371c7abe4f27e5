"""The cache folder, and remembered content hashes of sources."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iiad.errors import InputError
from iiad.files import atomic_file, file_sha256
from iiad.progress import Progress, report_progress

from .sources import Source

__all__ = ["ADVICE", "FileState", "HashedSource", "default_cache_dir", "hash_sources"]

HASHES_FILE = "hashes.json"
SETTLED_NS = 2_000_000_000
ADVICE = "; name another folder with cache_dir or IIAD_CACHE"
SHOWN_FROM = 1 << 30  # hash in silence below this many bytes: it takes about a second

FileState = tuple[int, int, int, int]
"""Size in bytes, mtime and ctime in nanoseconds, inode: as long as these stay, the content is taken to."""


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


def default_cache_dir() -> Path:
    """`$IIAD_CACHE`, else `$XDG_CACHE_HOME/iiad`, else `~/.cache/iiad`."""
    if os.environ.get("IIAD_CACHE"):
        return Path(os.environ["IIAD_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iiad"


def hash_sources(sources: Sequence[Source], folder: Path, progress: Progress = False) -> list[HashedSource]:
    """Hash the content of every source, or remember the hash from `folder` if the file's state is as it was.

    Raises:
        InputError: a file cannot be read, or changes meanwhile.
    """
    remembered = _remembered(folder)
    states = [_state(source) for source in sources]
    total = sum(
        state[0]
        for source, state in zip(sources, states, strict=True)
        if (_place(source), state) not in remembered
    )
    hashed, done, settled = [], 0, {}
    with report_progress("hashing", total, progress if total >= SHOWN_FROM else False) as advance:
        for source, state in zip(sources, states, strict=True):
            sha256 = remembered.get((_place(source), state))
            if sha256 is None:
                started = time.time_ns()
                sha256 = file_sha256(source.path)
                done += state[0]
                advance(done)
                # A file written to a moment ago may change again without its clock ticking: do not trust that.
                if max(state[1], state[2]) < started - SETTLED_NS:
                    settled[_place(source), state] = sha256
            hashed.append(HashedSource(source, sha256, state))
            hashed[-1].check_unchanged()
    if settled:
        with contextlib.suppress(InputError):  # it only saves time
            _remember(folder, settled)
    return hashed


def _place(source: Source) -> str:
    return str(source.path.resolve())


def _state(source: Source) -> FileState:
    try:
        stat = source.path.stat()
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror}") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _remembered(folder: Path) -> dict[tuple[str, FileState], str]:
    """The hashes that `folder` remembers; none if its file is missing or damaged."""
    try:
        entries = json.loads((folder / HASHES_FILE).read_bytes())
        return {
            (str(place), (int(size), int(mtime), int(ctime), int(inode))): str(sha256)
            for place, (size, mtime, ctime, inode, sha256) in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(folder: Path, hashes: dict[tuple[str, FileState], str]) -> None:
    """Add to what is remembered, one hash a file. Of two processes at once one may be forgotten: harmless."""
    merged = {**_remembered(folder), **hashes}
    entries = {place: [*state, sha256] for (place, state), sha256 in merged.items()}
    with atomic_file(folder / HASHES_FILE, ADVICE) as file:
        file.write(json.dumps(entries).encode())
