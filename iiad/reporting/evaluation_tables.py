"""Tables of evaluations: a row per model, quality beside cost; scores of tasks, a column per model."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import RenderableType
from rich.table import Table

from iiad.evaluation.quality_artefact import Evaluation, EvaluationResult, TaskMetric, TextMetric
from iiad.progress import format_size

from .tables import format_evaluations, format_number, format_share, record_tables, report

__all__ = ["evaluation_table"]

_LEGEND = (
    "overhead cut: iterations gone, of those of the first model; compute cut: block evaluations gone, likewise; "
    "retained: accuracy as a share of the first model's; bits per byte compares models of different tokenizers."
)
_TEXT_LEGEND = (
    " Scores of texts: 0 to 100, ± half their 95 % interval; p: paired randomization test against the first."
)
_Columns = list[tuple[str, Callable[[EvaluationResult], str]]]
_NAME: _Columns = [("model", lambda row: row.label)]
_TEXT: _Columns = [
    (
        "perplexity",
        lambda row: format_number(row.perplexity, ".2f" if (row.perplexity or 0) < 1e5 else ".2e"),
    ),
    ("bits per\nbyte", lambda row: format_number(row.bits_per_byte, ".4f")),
    ("accuracy", lambda row: format_share(row.accuracy, digits=2)),
    ("retained", lambda row: format_share(row.retained)),
]
_COST: _Columns = [
    ("overhead\ncut", lambda row: format_share(row.overhead_cut)),
    ("compute\ncut", lambda row: format_share(row.compute_cut)),
    (
        "evaluations\nper token",
        lambda row: format_evaluations(row.mean_evaluations, row.evaluations_per_token),
    ),
    ("cache per\ntoken", lambda row: format_size(row.cache_bytes_per_token)),
]
_NATS: _Columns = [("nats per\ntoken", lambda row: format_number(row.nll, ".4f"))]


def evaluation_table(evaluation: Evaluation, width: int) -> RenderableType:
    """Render an evaluation on `width` characters: what was read, the tables, a legend of the columns."""
    settings, results = evaluation.settings, evaluation.results
    read = []
    if evaluation.data:
        tokens = ", ".join(f"{entry.num_tokens:,}" for entry in evaluation.data)
        pairs = results[0].model.num_encoder_layers > 0
        most = "sources and targets of at most" if pairs else "blocks of"
        read.append(f"{tokens} tokens, {most} {settings.block_size}")
    if settings.harness is not None:
        read.append(f"tasks of lm-eval {settings.harness}")
    if settings.texts is not None:
        texts, beams = settings.texts, settings.texts.num_beams
        read.append(f"{texts.num_texts:,} texts {'by greedy search' if beams == 1 else f'by {beams} beams'}")
    head = f"{', '.join(read)}, {settings.dtype} on {settings.device}"
    columns = [*_NAME, *_TEXT, *_COST, *_NATS] if evaluation.data else [*_NAME, *_COST]
    tables = record_tables(columns, results, width)
    groups = list(results[0].accuracy_by_group)
    if groups:
        tables += _group_tables(results, groups, width)
    if any(row.evaluations_by_layer for row in results):
        tables += _evaluation_tables(results, width)
    scores = [(task, metric) for task, found in results[0].tasks.items() for metric in found.metrics]
    if scores:
        tables += _task_tables(results, scores, width)
    if settings.texts is None:
        return report(head, tables, _LEGEND)
    tables += _text_tables(results, settings.texts.signatures, width)
    return report(head, tables, _LEGEND + _TEXT_LEGEND)


def _text_tables(results: list[EvaluationResult], signatures: dict[str, str], width: int) -> list[Table]:
    """Scores of generated texts, a row a metric, a column a model; and the metrics' signatures."""

    def column(result: EvaluationResult) -> tuple[str, Callable[[str], str]]:
        return result.label, lambda name: _format_score(result.text_metrics.get(name))

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("metric", no_wrap=True)
    made.add_column("signature", overflow="fold")
    for signature in dict.fromkeys(signatures.values()):
        made.add_row(", ".join(name for name, own in signatures.items() if own == signature), signature)
    return [*record_tables([("texts", str), *map(column, results)], signatures, width), made]


def _format_score(score: TextMetric | None) -> str:
    if score is None:
        return "-"
    tested = "" if score.p_value is None else f", p {score.p_value:.3f}"
    return f"{score.value:.2f} ± {(score.high - score.low) / 2:.2f}{tested}"


def _task_tables(results: list[EvaluationResult], scores: list[tuple[str, str]], width: int) -> list[Table]:
    """Scores of tasks with standard errors: a row a metric, a column a model."""

    def column(result: EvaluationResult) -> tuple[str, Callable[[tuple[str, str]], str]]:
        return result.label, lambda score: _format_metric(result.tasks[score[0]].metrics.get(score[1]))

    return record_tables([("task", " ".join), *map(column, results)], scores, width)


def _format_metric(metric: TaskMetric | None) -> str:
    if metric is None:
        return "-"
    if metric.standard_error is None:
        return format_number(metric.value, ".4f")
    return f"{format_number(metric.value, '.4f')} ± {metric.standard_error:.4f}"


def _evaluation_tables(results: list[EvaluationResult], width: int) -> list[Table]:
    """Mean evaluations where tokens stop by themselves: a row a layer and a class of token, a column a model."""
    labels = results[0].model.layer_labels()
    classes = list(dict.fromkeys(name for row in results for name in row.evaluations_by_class))

    def column(result: EvaluationResult) -> tuple[str, Callable[[str], str]]:
        by_layer = dict(
            zip((f"layer {label}" for label in labels), result.evaluations_by_layer, strict=False)
        )
        found = by_layer | result.evaluations_by_class
        return result.label, lambda name: format_number(found.get(name), ".2f")

    measured = [row for row in results if row.evaluations_by_layer]
    rows = [*(f"layer {label}" for label in labels), *classes]
    return record_tables([("evaluations in", str), *map(column, measured)], rows, width)


def _group_tables(results: list[EvaluationResult], groups: list[str], width: int) -> list[Table]:
    """Accuracy by length, operations or hops: a row a group, a column a model."""

    def column(result: EvaluationResult) -> tuple[str, Callable[[str], str]]:
        return result.label, lambda group: format_share(result.accuracy_by_group.get(group), digits=2)

    return record_tables([("accuracy at", str), *map(column, results)], groups, width)
