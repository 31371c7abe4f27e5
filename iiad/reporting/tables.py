"""Tables without frames, split where the terminal is too narrow, and the numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = [
    "filled_table",
    "format_coefficients",
    "format_evaluations",
    "format_number",
    "format_share",
    "record_tables",
    "report",
    "stacked_tables",
]

_GAP = 2
T = TypeVar("T")


def report(head: str, tables: list[Table], legend: str) -> RenderableType:
    """Stack a heading, tables and a legend."""
    apart = [part for table in tables for part in (table, Text())]
    return Group(Text(head), Text(), *apart, Text(legend, style="dim"))


def record_tables(
    columns: Sequence[tuple[str, Callable[[T], str]]], records: Iterable[T], width: int
) -> list[Table]:
    """Make `stacked_tables` of columns, each a heading and what it shows of a record, and a row a record."""
    rows = [[show(record) for _, show in columns] for record in records]
    return stacked_tables([heading for heading, _ in columns], rows, width)


def stacked_tables(columns: list[str], rows: list[list[str]], width: int) -> list[Table]:
    """Make one table without frames or, where `width` is too small, several with the first column in each.

    columns: headings, which may be of several lines; the first column is text, the others are numbers.
    """
    widths = [
        max(len(line) for cell in cells for line in cell.split("\n")) + _GAP
        for cells in zip(columns, *rows, strict=True)
    ]
    groups: list[list[int]] = [[0]]
    for column in range(1, len(columns)):
        taken = sum(widths[other] for other in groups[-1])
        if len(groups[-1]) > 1 and taken + widths[column] > width + _GAP:  # nothing follows the last column
            groups.append([0])
        groups[-1].append(column)
    return [
        filled_table(
            [columns[column] for column in group], [[row[column] for column in group] for row in rows]
        )
        for group in groups
    ]


def filled_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table without frames: the first column text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    table.add_column(headings[0], overflow="fold", vertical="bottom")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def format_share(share: float | None, digits: int = 1) -> str:
    """Format a share of 1 as a percentage, None as "-"."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def format_coefficients(found: Sequence[float]) -> str:
    """Format the coefficients of a layer's stop, none as "-"."""
    return " ".join(f"{b:+.2f}" for b in found) or "-"


def format_evaluations(mean: float | None, most: int) -> str:
    """Format a token's evaluations: as measured, of those of the plan; None: all."""
    return str(most) if mean is None else f"{mean:.2f} of {most}"


def format_number(value: float | None, form: str = ".2f") -> str:
    """Format a number, None as "-"."""
    return "-" if value is None else format(value, form)
