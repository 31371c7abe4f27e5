"""Outputs: kept apart from inputs, new unless they may be replaced, and locked while they are written.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import glob
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError
from .files import read_json
from .progress import print_status

__all__ = [
    "find_holder",
    "lock_file",
    "lock_folder",
    "require_apart",
    "require_capture_folder",
    "require_new_file",
    "require_new_folder",
]


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes that lock the folder out of it while the block runs.

    The folder is made if need be, and removed if the block leaves nothing in it. Raises InputError, which names the
    holder, where another process holds the lock, or the folder cannot be made. A killed process holds no lock.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder}: expected a folder, got a file")
    with _lock(Path(folder) / ".lock", folder):
        yield


def find_holder(folder: str | Path) -> str | None:
    """Return which process holds the folder's lock; None where none does, or this one may not ask."""
    if not (Path(folder) / ".lock").exists():
        return None
    try:
        with lock_folder(folder):
            return None
    except InputError as error:
        return str(error).partition("is being written by ")[2] or None


@contextmanager
def lock_file(path: str | Path) -> Iterator[None]:
    """Keep other processes that lock this file, which need not exist, from it; as `lock_folder` does for a folder."""
    with _lock(Path(path).parent / f".{Path(path).name}.lock", path):
        yield


_held: set[str] = set()
"""Locks of this process, in which a command and the function that it calls may lock the same output."""


@contextmanager
def _lock(lock: Path, output: str | Path) -> Iterator[None]:
    """Hold the lock file; output: what an error calls it."""
    key = os.path.realpath(lock)
    if key in _held:
        yield
        return
    made = [folder for folder in lock.parents if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _hold(lock, output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from None
    _held.add(key)
    try:
        yield
    finally:
        _held.remove(key)
        with suppress(OSError):  # folders that are not empty stay
            lock.unlink()
            for folder in made:
                folder.rmdir()
        os.close(descriptor)


def _hold(lock: Path, output: str | Path) -> int:
    """Open and lock a file that says who holds it; return its descriptor."""
    import fcntl  # not on Windows, where artefacts can still be read

    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = " ".join(os.read(descriptor, 200).decode(errors="replace").split())
            os.close(descriptor)
            raise InputError(f"{output}: is being written by {holder or 'another process'}") from None
        except OSError:  # a file system without locks
            pass
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                break
        os.close(descriptor)  # its holder has just removed it
    who = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, who.encode())
    return descriptor


def require_apart(
    inputs: Iterable[str | Path | None],
    texts: Iterable[str] = (),
    files: Mapping[str, str | Path | None] | None = None,
    folders: Mapping[str, str | Path | None] | None = None,
) -> None:
    """Raise InputError for an output that is an input, by whatever link, or that would replace or contain one.

    inputs: models, artefacts and other files; what is not here, a name of the hub, is passed over. texts: files,
    patterns and folders; a folder is read with all below it, so no output folder may lie there. files, folders: the
    outputs, by option. In an input folder a file may replace a result of ours alone.
    """
    given = [(path, "an input", False) for path in inputs if path is not None and os.path.exists(path)]
    for text in texts:
        name = os.path.expanduser(text)
        found = [name] if os.path.exists(name) else glob.iglob(name, recursive=True)
        given += [(each, "an input", True) for each in found]
    outputs = [(field, path, False) for field, path in (files or {}).items() if path is not None]
    outputs += [(field, path, True) for field, path in (folders or {}).items() if path is not None]
    for field, output, is_folder in outputs:
        ours = Path(os.path.realpath(output))
        replaces = ours.is_file() and not _is_result(ours)
        for path, role, is_text in given:
            theirs = Path(os.path.realpath(path))
            same = ours == theirs or (ours.exists() and theirs.exists() and ours.samefile(theirs))
            inside = theirs in ours.parents and (is_text if is_folder else replaces)
            if same or inside or ours in theirs.parents:
                raise InputError(f"{field}: expected another path than {path}, which is {role}, got {output}")
        given.append((output, "an output", False))


def _is_result(path: Path) -> bool:
    """Return whether a file is an artefact that stands by itself: no record of a folder."""
    try:
        kind = read_json(path).get("kind")
    except InputError:
        return False
    return isinstance(kind, str) and kind not in ("run", "signals")


def require_new_file(path: str | Path, overwrite: bool = False) -> Path:
    """Return the path if a new file can be written there. Raises InputError otherwise."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'a device'}")
    if os.path.lexists(path) and not overwrite:
        what = "exists already" if path.exists() else "is a link to nothing"
        raise InputError(f"{path}: {what}; name another file, or pass --overwrite")
    _require_writable(path)
    return path


def require_new_folder(folder: str | Path) -> Path:
    """Return the folder if it can be written and holds nothing. Raises InputError otherwise."""
    folder = Path(folder)
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder}: is a link to nothing; name another folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already and is not empty; nothing was overwritten")
    _require_writable(folder)
    return folder


def require_capture_folder(folder: Path, resume: bool, record: str, journal: str, what: str) -> Path:
    """Return the folder if a capture can be written there. Raises InputError for one that holds anything else.

    That is: a finished capture, which has its record, an unfinished one, which has its journal, without `resume`, and
    other files. what: is captured. Nothing is written.
    """
    if (folder / record).exists():
        raise InputError(f"{folder}: holds finished {what}; nothing was changed; name another folder")
    if (folder / journal).exists():
        if not resume:
            raise InputError(
                f"{folder}: holds an unfinished capture; go on with --resume, or name another folder"
            )
        return folder
    # The lock, and what a kill can leave before the journal is there, begin with a dot.
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no capture; name another folder")
    if resume:
        print_status(f"{folder}: nothing to resume; starting afresh")
    return folder


def _require_writable(path: Path) -> None:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{path}: {there} cannot be written to")
