"""Sources: files, patterns, folders, pairs of files and embedded corpora, as a list of files of known kind."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iiad.errors import InputError, require_utf8

from .task_base import Task
from .tasks import parse_task

__all__ = [
    "EMBEDDED",
    "KNOWN_SUFFIXES",
    "AnySource",
    "FileSource",
    "ParallelSource",
    "Source",
    "TaskSource",
    "input_paths",
    "resolve_inputs",
]

KNOWN_SUFFIXES: dict[str, tuple[Literal["text", "jsonl", "parquet"], bool]] = {
    ".txt": ("text", False),
    ".jsonl": ("jsonl", False),
    ".parquet": ("parquet", False),
    ".txt.gz": ("text", True),
    ".jsonl.gz": ("jsonl", True),
    "": ("text", False),
}
"""Suffix (case does not matter) -> kind, and if the file is gzip-compressed. Without one: text, if it is UTF-8."""
_EXPECTED = f"expected a file that ends in {', '.join(filter(None, KNOWN_SUFFIXES))} or has no suffix"
_LISTED = 10  # files, in a message

SNIFFED_BYTES = 1 << 16
SPLITS = ("train", "validation")
EMBEDDED: dict[str, Literal["text", "docstrings"]] = {"stdlib": "text", "docstrings": "docstrings"}
"""Corpora made of the files of Python's standard library, with the kind of their sources."""
_PARALLEL = re.compile("pairs:source=(.+),target=(.+)")
VALIDATION_BYTE = 13  # of 256: the share of stdlib files in validation, 5.1 %

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_LEFT_OUT |= {"pydoc_data"}  # one generated file of prose, as large as forty modules
_GENERATED = ("_sysconfigdata", "config-")  # written by Python's build: differ from machine to machine


@dataclass(frozen=True)
class Source:
    """One file of the corpus.

    path: as the user gave it. name: for display, the path inside the folder that was given, or the file's name.
    kind: one document a file ("text"), a line ("jsonl") or a row ("parquet"); or the pairs of a Python file, its
    functions and classes with their docstrings ("docstrings"). compressed: by gzip.
    """

    path: Path
    name: str
    kind: Literal["text", "jsonl", "parquet", "docstrings"]
    compressed: bool = False

    @property
    def files(self) -> tuple[Source, ...]:
        """The file, of which `ParallelSource` has two."""
        return (self,)


@dataclass(frozen=True)
class ParallelSource:
    """Two text files whose lines are pairs."""

    source: Source
    target: Source

    @property
    def name(self) -> str:
        """Both names."""
        return f"pairs:source={self.source.name},target={self.target.name}"

    @property
    def files(self) -> tuple[Source, ...]:
        """Both files."""
        return self.source, self.target


@dataclass(frozen=True)
class TaskSource:
    """The rows of one split of a generated task."""

    task: Task
    split: str

    @property
    def name(self) -> str:
        """The task with its settings."""
        return str(self.task)


FileSource = Source | ParallelSource
AnySource = FileSource | TaskSource


def input_paths(name: str) -> list[str]:
    """Return the files, patterns or folders of an input: the two of pairs, none of an embedded corpus or a task."""
    if name.partition(":")[0] in EMBEDDED or parse_task(name) is not None:
        return []
    found = _PARALLEL.fullmatch(name)
    return list(found.groups()) if found else [name]


def resolve_inputs(inputs: Sequence[str], split: str = "train") -> list[AnySource]:
    """Find the files that `inputs` name: in the order given, sorted inside a pattern or folder, each once.

    inputs: each a file, a glob pattern (`**` recurses), a folder (recursive; files of other suffixes and hidden ones
        are passed over) or `stdlib`, `stdlib:train`, `stdlib:validation`: the Python files of the running
        interpreter; `docstrings`, the same files as pairs of code and docstring. A file or folder that is really
        called `stdlib` is `./stdlib`. Or two text files whose lines are pairs, `pairs:source=FILE,target=FILE`. Or a
        task of `iiad.data.tasks` with its settings, such as `states:group=s5,length=16`.
    split: of tasks and of plain `stdlib` and `docstrings`, "train" or "validation"; files do not depend on it.

    Raises InputError where files are missing, unreadable, of another suffix or without one and no UTF-8, or patterns
    or folders match nothing, naming all of them; for an unknown split, and for no inputs.
    """
    if isinstance(inputs, str) or not inputs:
        raise InputError(f"inputs: expected a list of at least one file, pattern or folder, got {inputs!r}")
    kept: dict[Any, AnySource] = {}
    problems: dict[str, list[str]] = {}
    for item in inputs:
        for found in _resolve(item, split):
            if isinstance(found, TaskSource):
                kept.setdefault(found.name, found)
            elif isinstance(found, tuple):
                expected, got = found
                problems.setdefault(expected, []).append(got)
            else:
                key = (
                    isinstance(found, Source) and found.kind,
                    *(part.path.resolve() for part in found.files),
                )
                kept.setdefault(key, found)
    if problems:
        lines = []
        for expected, names in problems.items():
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"{expected}, got {', '.join(names[:_LISTED])}{more}")
        raise InputError(f"inputs: {'; '.join(lines)}")
    return list(kept.values())


def _resolve(item: str, split: str) -> Iterator[AnySource | tuple[str, str]]:
    """Yield the sources that one input names, in order; for what cannot be one, what is expected and what is got."""
    if (task := parse_task(item)) is not None:
        yield TaskSource(task, split)
        return
    name, _, own_split = item.partition(":")
    if name in EMBEDDED:
        for path, relative in stdlib_files(own_split or split):
            yield Source(path, f"{name}/{relative}", EMBEDDED[name])
        return
    if item.startswith("pairs:"):
        yield from _parallel_source(item)
        return
    path = Path(os.path.expanduser(item))
    if item and path.is_dir():
        yield from _folder_sources(path)
    elif item and path.exists():
        yield _file_source(path, path.name)
    else:
        # Another suffix is refused, not passed over as in a folder: the pattern asked for it.
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))] if item else []
        files = [match for match in matches if not match.is_dir()]
        if not files:
            yield "expected a file, folder or pattern that matches one", repr(item)
        for match in files:
            yield _file_source(match, match.name)


def _parallel_source(item: str) -> Iterator[ParallelSource | tuple[str, str]]:
    """Yield the source of `pairs:source=FILE,target=FILE`, or what is wrong with its files."""
    paths = [Path(os.path.expanduser(name)) for name in input_paths(item)]
    if len(paths) != 2:
        yield "expected pairs:source=FILE,target=FILE", repr(item)
        return
    files = []
    for path in paths:
        found = _file_source(path, path.name) if path.exists() else ("expected a file", repr(str(path)))
        if isinstance(found, Source) and found.kind != "text":
            found = "expected text, a pair a line, in files of pairs:", str(path)
        if isinstance(found, tuple):
            yield found
        else:
            files.append(found)
    if len(files) == 2:
        yield ParallelSource(*files)


def _folder_sources(folder: Path) -> Iterator[Source | tuple[str, str]]:
    """Yield every file below `folder` that may be a source, sorted by path, hidden files and folders passed over."""
    found = False
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and _suffix(path) in KNOWN_SUFFIXES and path.is_file():
            found = True
            yield _file_source(path, f"{folder.name}/{relative.as_posix()}")
    if not found:
        yield _EXPECTED, f"none in {folder}"


def _file_source(path: Path, name: str) -> Source | tuple[str, str]:
    require_utf8(f"inputs: name of a file in {str(path.parent)!a}", name)
    if not path.is_file():
        return "expected a regular file", str(path)
    if _suffix(path) not in KNOWN_SUFFIXES:
        return _EXPECTED, str(path)
    if not os.access(path, os.R_OK):
        return "expected a readable file", f"no permission for {path}"
    if not _suffix(path) and not _is_text(path, SNIFFED_BYTES):
        return "expected UTF-8 text in a file without a suffix", str(path)
    return Source(path, name, *KNOWN_SUFFIXES[_suffix(path)])


def _suffix(path: Path) -> str:
    """Return the last suffix in lower case, with the one before it if the last is `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def stdlib_files(split: str) -> list[tuple[Path, str]]:
    """List the `*.py` files of one split of the standard library, each with its relative path, sorted by it.

    A file's split depends on its relative path alone, so that machines with the same Python agree. Tests, third-party
    packages, generated files and files that are not UTF-8 are left out. CPython 3.11.7 on Linux has 689 files and
    10.8 MB in train, 41 files and 0.48 MB in validation.

    Raises InputError for an unknown split, and where this Python has no source files (embedded or zipped).
    """
    if split not in SPLITS:
        raise InputError(f"inputs: expected split train or validation, as in stdlib:train, got {split!r}")
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(_GENERATED)]
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            in_validation = hashlib.sha256(relative.encode()).digest()[0] < VALIDATION_BYTE
            if not name.endswith(".py") or name.startswith(_GENERATED):
                continue
            if in_validation == (split == "validation") and _is_text(path):
                files.append((path, relative))
    if not files:
        raise InputError(f"inputs: expected Python source files for stdlib, got none in {root}")
    return sorted(files, key=lambda file: file[1])


def _is_text(path: Path, num_bytes: int = -1) -> bool:
    """Return whether the beginning, or all, of a file is UTF-8 without NUL. A character that is cut there counts."""
    try:
        with open(path, "rb") as file:
            content = file.read(num_bytes)
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(content, final=num_bytes < 0)
    except (OSError, UnicodeDecodeError):
        return False
