"""Tables of evaluations: a row per model, quality beside cost."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import RenderableType
from rich.table import Table

from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult
from iiad.progress import format_size

from .tables import format_share, record_tables, report

__all__ = ["evaluation_table"]

_LEGEND = (
    "overhead cut: iterations gone, of those of the first model; compute cut: block evaluations gone, likewise; "
    "retained: accuracy as a share of the first model's; bits per byte compares models of different tokenizers."
)
_COLUMNS: list[tuple[str, Callable[[EvaluationResult], str]]] = [
    ("model", lambda row: row.label),
    ("perplexity", lambda row: format(row.perplexity, ".2f" if row.perplexity < 1e5 else ".2e")),
    ("bits per\nbyte", lambda row: "-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"),
    ("accuracy", lambda row: format_share(row.accuracy, digits=2)),
    ("retained", lambda row: format_share(row.retained)),
    ("overhead\ncut", lambda row: format_share(row.overhead_cut)),
    ("compute\ncut", lambda row: format_share(row.compute_cut)),
    ("evaluations\nper token", lambda row: str(row.evaluations_per_token)),
    ("cache per\ntoken", lambda row: format_size(row.cache_bytes_per_token)),
    ("nats per\ntoken", lambda row: f"{row.nll:.4f}"),
]


def evaluation_table(evaluation: Evaluation, width: int) -> RenderableType:
    """Render an evaluation on `width` characters: the data read, the table, a legend of its columns."""
    settings = evaluation.settings
    read = ", ".join(f"{entry.num_tokens:,}" for entry in evaluation.data)
    head = f"{read} tokens, blocks of {settings.block_size}, {settings.dtype} on {settings.device}"
    tables = record_tables(_COLUMNS, evaluation.results, width)
    groups = list(evaluation.results[0].accuracy_by_group)
    if groups:
        tables += _group_tables(evaluation.results, groups, width)
    return report(head, tables, _LEGEND)


def _group_tables(results: list[EvaluationResult], groups: list[str], width: int) -> list[Table]:
    """Accuracy by length, operations or hops: a row a group, a column a model."""

    def column(result: EvaluationResult) -> tuple[str, Callable[[str], str]]:
        return result.label, lambda group: format_share(result.accuracy_by_group.get(group), digits=2)

    return record_tables([("accuracy at", str), *map(column, results)], groups, width)
