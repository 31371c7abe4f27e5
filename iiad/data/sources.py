"""Sources: what the user named (files, patterns, folders, `stdlib`) as a list of files of known kind."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iiad.errors import InputError

from .stdlib import SPLITS, stdlib_files

__all__ = ["KNOWN_SUFFIXES", "Kind", "Source", "resolve_inputs"]

Kind = Literal["text", "jsonl", "parquet"]

KNOWN_SUFFIXES: dict[str, tuple[Kind, bool]] = {
    ".txt": ("text", False),
    ".jsonl": ("jsonl", False),
    ".parquet": ("parquet", False),
    ".txt.gz": ("text", True),
    ".jsonl.gz": ("jsonl", True),
}
"""Suffix (case does not matter) -> kind, and whether the file is gzip-compressed."""


@dataclass(frozen=True)
class Source:
    """One file of the corpus.

    Attributes:
        path: the file, as the user gave it; error messages name it.
        name: short name for display; the path inside the folder that was given, or the file's name.
        kind: "text" (one document a file), "jsonl" (one a line) or "parquet" (one a row).
        compressed: whether the file is gzip-compressed.
    """

    path: Path
    name: str
    kind: Kind
    compressed: bool = False


def resolve_inputs(inputs: Sequence[str], split: str = "train") -> list[Source]:
    """Find the files that `inputs` name.

    Args:
        inputs: each a file, a glob pattern (`**` recurses), a folder (recursive; files of unknown suffix and
            hidden ones are passed over) or `stdlib`, `stdlib:train`, `stdlib:validation`: the Python files of
            the running interpreter. A file or folder that is really called `stdlib` is `./stdlib`.
        split: what plain `stdlib` means, "train" or "validation"; nothing else depends on it.

    Returns:
        Sources in the order given, sorted inside a pattern or folder. A file named twice is kept once, where
        it first stood.

    Raises:
        InputError: a file is missing, unreadable or of unknown suffix, a pattern or folder matches nothing, a
            split is unknown, or there are no inputs.
    """
    if isinstance(inputs, str) or not inputs:
        raise InputError(
            f"inputs: found {inputs!r}; accepted: a list of at least one file, pattern or folder"
        )
    if split not in SPLITS:
        raise InputError(f"split: found {split!r}; accepted: {', '.join(SPLITS)}")
    kept: dict[Path, Source] = {}
    for item in inputs:
        for source in _resolve(item, split):
            kept.setdefault(source.path.resolve(), source)
    return list(kept.values())


def _resolve(item: str, split: str) -> Iterator[Source]:
    """The sources that one input names, in order."""
    if item == "stdlib" or item.startswith("stdlib:"):
        yield from _stdlib_sources(item.partition(":")[2] if ":" in item else split)
        return
    expanded = os.path.expanduser(item)
    path = Path(expanded)
    if os.path.isdir(expanded):
        yield from _folder_sources(path)
    elif os.path.exists(expanded):
        yield _file_source(path, path.name)
    elif glob.has_magic(expanded):
        yield from _pattern_sources(item, expanded)
    else:
        raise InputError(f"inputs: {item!r}: no such file or folder")


def _stdlib_sources(split: str) -> Iterator[Source]:
    if split not in SPLITS:
        accepted = ", ".join(f"stdlib:{known}" for known in SPLITS)
        raise InputError(f"inputs: 'stdlib:{split}': unknown split {split!r}; accepted: stdlib, {accepted}")
    for path, relative in stdlib_files(split):
        yield Source(path, f"stdlib/{relative}", "text")


def _folder_sources(folder: Path) -> Iterator[Source]:
    """Every file of known suffix below `folder`, sorted by path, hidden files and folders passed over."""
    found = False
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and _suffix(path) in KNOWN_SUFFIXES and path.is_file():
            found = True
            yield _file_source(path, f"{folder.name}/{relative.as_posix()}")
    if not found:
        raise InputError(f"inputs: {str(folder)!r}: no file here ends in {', '.join(KNOWN_SUFFIXES)}")


def _pattern_sources(item: str, pattern: str) -> Iterator[Source]:
    """Every file that matches. Unlike in a folder an unknown suffix is refused: the pattern asked for it."""
    paths = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in paths if not path.is_dir()]
    if not files:
        raise InputError(f"inputs: {item!r}: the pattern matches no file")
    for path in files:
        yield _file_source(path, path.name)


def _file_source(path: Path, name: str) -> Source:
    if not path.is_file():
        raise InputError(f"inputs: {str(path)!r}: not a regular file")
    suffix = _suffix(path)
    if suffix not in KNOWN_SUFFIXES:
        accepted = ", ".join(KNOWN_SUFFIXES)
        raise InputError(f"inputs: {str(path)!r}: unknown suffix {suffix!r}; accepted: {accepted}")
    if not os.access(path, os.R_OK):
        raise InputError(f"inputs: {str(path)!r}: no permission to read")
    kind, compressed = KNOWN_SUFFIXES[suffix]
    return Source(path, name, kind, compressed)


def _suffix(path: Path) -> str:
    """The last suffix in lower case, with the one before it if the last is `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
