"""An evaluation as a table: a row a model, quality beside cost."""

from __future__ import annotations

from itertools import chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.evaluation.artefact import Evaluation, EvaluationResult

__all__ = ["evaluation_table", "format_bytes", "format_share", "plain_table"]

_LEGEND = (
    "overhead cut: iterations gone, of those of the first model. compute cut: block evaluations gone, likewise.",
    "retained: accuracy as a share of the first model's. bits/byte compares models of different tokenizers.",
)


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """What `iiad evaluate` prints: what was read, the table, and what its columns mean."""
    settings = evaluation.settings
    table = plain_table(
        ["model", "nats/token", "perplexity", "bits/byte", "accuracy", "retained"],
        ["evaluations/token", "overhead cut", "compute cut", "cache/token"],
    )
    for result in evaluation.results:
        table.add_row(*_cells(result))
    read = ", ".join(f"{entry.num_tokens:,}" for entry in evaluation.data)
    head = f"{read} tokens, blocks of {settings.block_size}, {settings.dtype} on {settings.device}"
    return Group(Text(head), table, *(Text(line, style="dim") for line in _LEGEND))


def _cells(result: EvaluationResult) -> list[str]:
    return [
        result.label,
        f"{result.nll:.4f}",
        f"{result.perplexity:.2f}" if result.perplexity < 1e5 else f"{result.perplexity:.2e}",
        f"{result.bits_per_byte:.4f}",
        format_share(result.accuracy, digits=2),
        format_share(result.retained),
        str(result.evaluations_per_token),
        format_share(result.overhead_cut),
        format_share(result.compute_cut),
        format_bytes(result.cache_bytes_per_token),
    ]


def plain_table(*columns: list[str]) -> Table:
    """A table without frames: the first column text, the others numbers. Nothing is cut off when piped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(chain(*columns)):
        if number == 0:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", overflow="fold")
    return table


def format_share(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage, "-" for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def format_bytes(size: float) -> str:
    """A number of bytes, with three figures or so, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
