"""Pairs of the embedded corpus `docstrings`: code without its docstring, and the docstring's first paragraph."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

from iiad.errors import InputError

from .sources import Source

__all__ = ["read_docstrings"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def read_docstrings(source: Source) -> Iterator[tuple[str, list[str]]]:
    """Yield the pairs of a Python file, each with its place, in the order of the file, which is parsed and never run.

    Of every function and class with a docstring, nested ones too: its lines without the docstring, indented as if it
    stood alone, and the docstring's first paragraph in one line. A file that this Python cannot parse has none.

    Raises InputError where the file cannot be read.
    """
    try:
        content = source.path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in the file's strings
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = content.splitlines(keepends=True)  # as ast counts them: at \n, \r and \r\n
    found = [node for node in ast.walk(tree) if isinstance(node, Definition)]
    for node in sorted(found, key=lambda node: node.lineno):
        paragraph = re.split(r"\n\s*\n", ast.get_docstring(node) or "")[0]
        if target := " ".join(paragraph.split()):
            yield f"{source.path}: line {node.lineno}", [_without_docstring(node, lines), target]


def _without_docstring(node: Definition, lines: list[bytes]) -> str:
    """Return the text of a definition, decorators included, less its docstring. lines: the file's, in UTF-8."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    docstring = node.body[0]
    assert docstring.end_lineno is not None
    assert docstring.end_col_offset is not None
    begin, end = docstring.lineno - 1, docstring.end_lineno - 1
    before = b"".join(lines[first - 1 : begin]) + lines[begin][: docstring.col_offset].rstrip(b" \t")
    after = b"".join([lines[end][docstring.end_col_offset :], *lines[end + 1 : node.end_lineno]])
    after = after.lstrip(b" \t;")
    if before.endswith((b"\n", b"\r")):  # the docstring had its lines to itself
        after = re.sub(rb"\A\r?\n?", b"", after)
    return textwrap.dedent((before + after).decode(errors="replace")).strip()
