"""Parts of a page (texts, tables, maps, plans, charts, code), and the terminal's tables made into them.

Parts hold plain text: the template escapes it. `bounded` keeps what they show within what a page can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice
from typing import Any, Literal

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from iiad.progress import BINARY_UNITS

__all__ = [
    "Cell",
    "Chart",
    "Code",
    "Details",
    "Figure",
    "Grid",
    "Part",
    "Prose",
    "Section",
    "bounded",
    "make_table",
    "parts_of",
    "sort_key",
]

MOST_CHARACTERS = 240
"""Of a cell or a line of text."""
MOST_COLUMNS, MOST_ROWS = 40, 200
OUTCOMES = {"passed": "passed", "FAILED": "failed", "skipped": "skipped"}
"""Cells that have a colour, and its class."""
WIDTH = 100_000
"""Characters of the terminal that tables are made for: none is split."""
_NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """A cell. key: the number that it sorts by, None for its text. tip: shown on hover. style: its class."""

    text: str
    key: float | None = None
    tip: str = ""
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table, an influence map or a plan: cells in rows, the first of each row its heading.

    hidden: rows left out by `bounded`.
    """

    caption: str
    headings: list[str]
    rows: list[list[Cell]]
    kind: Literal["table", "map", "plan"] = "table"
    hidden: int = 0

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether most of what it shows are numbers."""
        columns = [[row[n] for row in self.rows if n < len(row)] for n in range(len(self.headings))]
        filled = [[cell for cell in column if cell.text not in ("", "-")] for column in columns]
        return [
            n > 0 and 2 * sum(cell.key is not None for cell in column) >= len(column)
            for n, column in enumerate(filled)
        ]


@dataclass(frozen=True)
class Prose:
    """A paragraph, a note, which is set smaller, or a heading within a section."""

    text: str
    kind: Literal["text", "note", "heading"] = "text"


@dataclass(frozen=True)
class Code:
    """Lines to type, with what they do."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture drawn to SVG, its legend as (series number, mark, label), and the same values as a table."""

    title: str
    text: str
    svg: str
    legend: list[tuple[int, str, str]]
    values: Grid


@dataclass(frozen=True)
class Details:
    """Parts that are folded away under a summary."""

    summary: str
    parts: list[Part]


@dataclass(frozen=True)
class Figure:
    """A figure of the summary: what it is of, its value, and a remark."""

    name: str
    value: str
    remark: str = ""


Part = Grid | Prose | Code | Chart | Details


@dataclass(frozen=True)
class Section:
    """A section with its anchor, which is unique, and the sentence that it opens with."""

    anchor: str
    title: str
    parts: list[Part] = field(default_factory=list)
    lead: str = ""


def sort_key(text: str) -> float | None:
    """Return the number that a cell begins with, in bytes where a binary unit follows; None for other text."""
    found = _NUMBER.match(text.replace("\N{MINUS SIGN}", "-"))
    if found is None:
        return None
    unit = re.match(r" ([KMG]iB)", text[found.end() :])
    return float(found[0].replace(",", "")) * (BINARY_UNITS[unit[1]] if unit else 1)


def make_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Grid:
    """Make a table of cells or of what becomes their text; the first column is text, the others sort by number."""
    return Grid(caption, list(headings), [[_cell(value, n) for n, value in enumerate(row)] for row in rows])


def _cell(value: Any, column: int) -> Cell:
    if isinstance(value, Cell):
        return value
    text = str(value)
    return Cell(text, sort_key(text) if column else None)


def parts_of(renderable: Any) -> list[Part]:
    """Return what a rich renderable of ours shows as parts: texts, and tables under the titles above them."""
    parts: list[Part] = []
    title = ""
    for piece in _flatten(renderable):
        if isinstance(piece, Table):
            parts.append(_table(piece, title))
            title = ""
            continue
        parts += [Prose(title)] if title else []
        text, style = piece.plain.strip(), str(piece.style)
        # A line in italics or bold is a table's title, the verdict aside.
        title = text if style in ("italic", "bold") and not text.startswith("Verdict") else ""
        parts += [] if title else _lines(text, "note" if style == "dim" else "text")
    return parts


def _table(table: Table, title: str) -> Grid:
    headings = [" ".join(str(column.header).replace("-\n", "").split()) for column in table.columns]
    columns = [list(islice(column.cells, MOST_ROWS)) for column in table.columns]
    rows = [[_rich_cell(cell, n) for n, cell in enumerate(row)] for row in zip(*columns, strict=True)]
    return Grid(str(table.title or title), headings, rows, hidden=max(0, table.row_count - MOST_ROWS))


def _rich_cell(cell: Any, column: int) -> Cell:
    text = cell.plain if isinstance(cell, Text) else str(cell)
    return Cell(text, sort_key(text) if column else None, style=OUTCOMES.get(text, ""))


def _lines(text: str, kind: Literal["text", "note"]) -> list[Part]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts: list[Part] = [Prose(line, kind) for line in lines[:MOST_ROWS]]
    if len(lines) > MOST_ROWS:
        parts.append(Prose(f"{len(lines) - MOST_ROWS:,} more lines are in the file.", "note"))
    return parts


def _flatten(renderable: Any) -> Iterator[Any]:
    if isinstance(renderable, Group):
        for inner in renderable.renderables:
            yield from _flatten(inner)
    elif hasattr(renderable, "__rich_console__") and not isinstance(renderable, Table | Text):
        console = Console(file=StringIO(), width=WIDTH)
        for inner in renderable.__rich_console__(console, console.options):
            yield from _flatten(inner)
    else:
        yield Text(renderable) if isinstance(renderable, str) else renderable


def bounded(part: Part, most_rows: int) -> Part:
    """Return the part with at most so many rows, and with texts and columns cut to what a page can hold."""
    if isinstance(part, Prose):
        return Prose(_cut(part.text, 8 * MOST_CHARACTERS), part.kind)
    if isinstance(part, Code):
        return Code(_cut(part.text, 8 * MOST_CHARACTERS), _cut(part.caption))
    if isinstance(part, Details):
        return Details(_cut(part.summary), [bounded(inner, most_rows) for inner in part.parts[:most_rows]])
    if isinstance(part, Chart):
        legend = [(number, mark, _cut(label)) for number, mark, label in part.legend]
        values = bounded(part.values, most_rows)
        assert isinstance(values, Grid)
        return Chart(_cut(part.title), _cut(part.text), part.svg, legend, values)
    most_columns = MOST_COLUMNS if part.kind == "table" else len(part.headings)  # maps are made within it
    rows = [
        [Cell(_cut(cell.text), cell.key, _cut(cell.tip), cell.style) for cell in row[:most_columns]]
        for row in part.rows[:most_rows]
    ]
    headings = [_cut(heading) for heading in part.headings[:most_columns]]
    return Grid(
        _cut(part.caption), headings, rows, part.kind, part.hidden + max(0, len(part.rows) - most_rows)
    )


def _cut(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
