"""A bench as tables: measured beside predicted speedup, a row a model, and the parts that cause the difference."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.evaluation.bench_artefact import FIXED_PARTS, PARTS, Bench, BenchResult, Breakdown, Phase, Spread
from iiad.progress import format_size

from .tables import format_evaluations, format_number, format_share, record_tables, stacked_tables

__all__ = ["bench_table", "explain_losses"]

_LEGEND = (
    "speedup: median of the ratios to the first model in the same round (smallest-largest); predicted: block "
    "evaluations of the first / own; kept: speedup / predicted; peak: most bytes of tensors alive at once beside the "
    "weights, the cache included; cache: measured after the last token, its ratio: to the first model's."
)
_PARTS_LEGEND = "Share of a call's time, in runs of their own under torch.profiler. " + "; ".join(
    f"{part}: {meaning}" for part, meaning in PARTS.items()
)
_Columns = list[tuple[str, Callable[[BenchResult], str]]]
ENOUGH = 0.97
"""Share of the predicted speedup; where less is kept, a line names the parts that cause it."""
_NAMES = {False: ("prefill", "prompt"), True: ("encoder", "source")}
"""Of the first phase, and of what it reads, without an encoder and with one."""
_SMALL = 0.005
"""Smaller shares of the time are not named."""


def bench_table(bench: Bench, width: int) -> RenderableType:
    """Return what `iiad bench` prints on `width` characters: settings, tables of each point of the grid, legends."""
    settings = bench.settings
    head = (
        f"{settings.new_tokens} new tokens, {settings.repeats} rounds, {settings.dtype} on {settings.device} "
        f"({settings.device_name}), {settings.num_threads} threads, torch {settings.torch_version}"
    )
    parts: list[RenderableType] = [Text(head), Text()]
    for batch_size, prompt_tokens in bench.points:
        results = bench.at(batch_size, prompt_tokens)
        read, given = _NAMES[results[0].model.num_encoder_layers > 0]
        parts.append(Text(f"batch {batch_size}, {prompt_tokens} {given} tokens", style="bold"))
        evaluated = any(result.perplexity is not None for result in results)
        tables = record_tables(_columns(results) + (_QUALITY if evaluated else []), results, width)
        tables += _parts_tables(results, "decode", "decode step", width)
        tables += _parts_tables(results, "prefill", read, width)
        for table in tables:
            parts += [table, Text()]
        for line in explain_losses(results):
            parts += [Text(line), Text()]
    return Group(*parts, Text(_LEGEND, style="dim"), Text(_PARTS_LEGEND, style="dim"))


def explain_losses(results: list[BenchResult]) -> list[str]:
    """Return a line for each result and phase that keeps too little of its predicted speedup: the parts that grew.

    results: of one point of the grid, the first model's first.
    """
    return [
        _explain(result, results[0], name)
        for result in results
        for name in ("decode", "prefill")
        if (kept := getattr(result, name).kept) is not None and kept < ENOUGH
    ]


def _explain(result: BenchResult, first: BenchResult, name: str) -> str:
    phase: Phase = getattr(result, name)
    whole: Breakdown | None = getattr(first, name).breakdown
    predicted = phase.predicted_speedup
    title = _NAMES[result.model.num_encoder_layers > 0][0] if name == "prefill" else name
    line = (
        f"{result.label}, {title}: {phase.speedup.median:.2f}x is {format_share(phase.kept)} of the predicted "
        f"{_times(predicted)}"
    )
    if predicted is None or phase.breakdown is None or whole is None or phase.expected_speedup is None:
        return f"{line}."
    excess = phase.breakdown.excess(whole, predicted)
    named = sorted((share, part) for part, share in excess.items() if share >= _SMALL)[::-1]
    grown = ", ".join(f"{part} {format_share(share)}" for share, part in named) or "none of the parts"
    line += (
        f"; with {', '.join(FIXED_PARTS[:-1])} and {FIXED_PARTS[-1]} unshrunk {phase.expected_speedup:.2f}x. Of its "
        f"time take more than the evaluations say: {grown}."
    )
    if phase.breakdown.host_share is not None:
        host = format_share(phase.breakdown.host_share, digits=0)
        line += f" The host took {host} of it to launch: near 100 %, launches bound it."
    return line


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def _milliseconds(phase: Phase, num_tokens: int) -> str:
    """Milliseconds of a call that takes so many tokens."""
    return f"{1000 * num_tokens / phase.tokens_per_second.median:.2f}"


def _evaluations(phase: Phase) -> str:
    return format_evaluations(phase.mean_evaluations, phase.evaluations_per_token)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"


def _columns(results: list[BenchResult]) -> _Columns:
    """Return the columns of models that are all causal, or all encoder-decoders."""
    reads = results[0].model.num_encoder_layers > 0
    read, _ = _NAMES[reads]
    if reads:
        predicted: _Columns = [
            ("predicted,\nencoder", lambda row: _times(row.prefill.predicted_speedup)),
            ("predicted,\ndecode", lambda row: _times(row.decode.predicted_speedup)),
        ]
        speeds: _Columns = [
            ("evaluations\nof encoder", lambda row: _evaluations(row.prefill)),
            ("evaluations\nof decoder", lambda row: _evaluations(row.decode)),
            ("encoder\nms", lambda row: _milliseconds(row.prefill, row.batch_size * row.prompt_tokens)),
            ("decode step\nms", lambda row: _milliseconds(row.decode, row.batch_size)),
        ]
    else:
        predicted = [("predicted\nspeedup", lambda row: _times(row.decode.predicted_speedup))]
        speeds = [
            ("evaluations\nper token", lambda row: _evaluations(row.decode)),
            ("prefill\ntokens/s", lambda row: _speed(row.prefill.tokens_per_second.median)),
            ("decode\ntokens/s", lambda row: _speed(row.decode.tokens_per_second.median)),
        ]
    return [
        ("model", lambda row: row.label),
        *predicted,
        (f"{read}\nspeedup", lambda row: _ratio(row.prefill.speedup)),
        ("kept", lambda row: format_share(row.prefill.kept, digits=0)),
        ("decode\nspeedup", lambda row: _ratio(row.decode.speedup)),
        ("kept", lambda row: format_share(row.decode.kept, digits=0)),
        ("cache\nratio", lambda row: _times(row.cache_ratio)),
        *speeds,
        ("cache per\ntoken", lambda row: format_size(row.cache_bytes_per_token)),
        ("cache", lambda row: format_size(row.cache_bytes)),
        (f"peak,\n{read}", lambda row: format_size(row.prefill.peak_bytes)),
        ("peak,\ndecode", lambda row: format_size(row.decode.peak_bytes)),
        ("weights", lambda row: format_size(row.weight_bytes)),
    ]


_QUALITY: _Columns = [
    ("perplexity", lambda row: format_number(row.perplexity)),
    ("accuracy", lambda row: format_share(row.accuracy)),
]
"""Columns that an evaluation fills."""


def _parts_tables(results: list[BenchResult], name: str, title: str, width: int) -> list[Table]:
    """Return the shares of a call's time of the models that were profiled."""
    profiled = [(result.label, getattr(result, name).breakdown) for result in results]
    rows = [
        [label, f"{1000 * parts.total:.2f}", *(format_share(parts.share(part)) for part in PARTS)]
        for label, parts in profiled
        if parts is not None
    ]
    return stacked_tables([title, "ms", *PARTS], rows, width) if rows else []
