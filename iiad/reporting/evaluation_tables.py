"""Tables of evaluations: a row per model, quality beside cost; and the helpers of such tables."""

from __future__ import annotations

from itertools import chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult
from iiad.memory import format_size

__all__ = ["evaluation_table", "format_share", "plain_table", "report", "stacked_tables"]

_LEGEND = (
    "overhead cut: iterations gone, of those of the first model; compute cut: block evaluations gone, likewise; "
    "retained: accuracy as a share of the first model's; bits per byte compares models of different tokenizers."
)
_GAP = 2


def evaluation_table(evaluation: Evaluation, width: int) -> RenderableType:
    """Render an evaluation on `width` characters: the data read, the table, a legend of its columns."""
    settings = evaluation.settings
    columns = [
        "model",
        "perplexity",
        "bits per\nbyte",
        "accuracy",
        "retained",
        "overhead\ncut",
        "compute\ncut",
    ]
    columns += ["evaluations\nper token", "cache per\ntoken", "nats per\ntoken"]
    read = ", ".join(f"{entry.num_tokens:,}" for entry in evaluation.data)
    head = f"{read} tokens, blocks of {settings.block_size}, {settings.dtype} on {settings.device}"
    tables = stacked_tables(columns, [_cells(result) for result in evaluation.results], width)
    return report(head, tables, _LEGEND)


def _cells(result: EvaluationResult) -> list[str]:
    return [
        result.label,
        f"{result.perplexity:.2f}" if result.perplexity < 1e5 else f"{result.perplexity:.2e}",
        f"{result.bits_per_byte:.4f}",
        format_share(result.accuracy, digits=2),
        format_share(result.retained),
        format_share(result.overhead_cut),
        format_share(result.compute_cut),
        str(result.evaluations_per_token),
        format_size(result.cache_bytes_per_token),
        f"{result.nll:.4f}",
    ]


def report(head: str, tables: list[Table], legend: str) -> RenderableType:
    """Stack a heading, tables and a legend."""
    apart = [part for table in tables for part in (table, Text())]
    return Group(Text(head), Text(), *apart, Text(legend, style="dim"))


def stacked_tables(columns: list[str], rows: list[list[str]], width: int) -> list[Table]:
    """Make one table without frames or, where `width` is too small, several with the first column in each.

    columns: headings, which may be of several lines; the first column is text, the others are numbers.
    """
    widths = [
        max(len(line) for cell in (heading, *cells) for line in cell.split("\n")) + _GAP
        for heading, *cells in zip(columns, *rows, strict=True)
    ]
    groups: list[list[int]] = [[]]
    for column in range(1, len(columns)):
        taken = widths[0] + sum(widths[other] for other in groups[-1])
        if groups[-1] and taken + widths[column] > width + _GAP:  # nothing follows the last column
            groups.append([])
        groups[-1].append(column)
    return [_table(columns, rows, group) for group in groups]


def _table(columns: list[str], rows: list[list[str]], chosen: list[int]) -> Table:
    table = plain_table([columns[0], *(columns[column] for column in chosen)])
    for row in rows:
        table.add_row(row[0], *(row[column] for column in chosen))
    return table


def plain_table(*headings: list[str]) -> Table:
    """Make an empty table without frames from lists of headings: the first column text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for number, heading in enumerate(chain(*headings)):
        if number == 0:
            table.add_column(heading, overflow="fold", vertical="bottom")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


def format_share(share: float | None, digits: int = 1) -> str:
    """Format a share of 1 as a percentage, None as "-"."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"
