"""A bench as tables: measured beside predicted speedup, a row a model, and the parts that cause the difference."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.evaluation.bench_artefact import FIXED_PARTS, PARTS, Bench, BenchResult, Breakdown, Phase, Spread
from iiad.memory import format_size

from .evaluation_tables import format_share, stacked_tables

__all__ = ["bench_table", "explain_losses"]

_LEGEND = (
    "speedup: median of the ratios to the first model in the same round (smallest-largest); predicted: block "
    "evaluations of the first / own; kept: speedup / predicted; peak: most bytes of tensors alive at once beside the "
    "weights, the cache included; cache: measured after the last token, its ratio: to the first model's."
)
_PARTS_LEGEND = "Share of a call's time, in runs of their own under torch.profiler. " + "; ".join(
    f"{part}: {meaning}" for part, meaning in PARTS.items()
)
ENOUGH = 0.97
"""Share of the predicted speedup; where less is kept, a line names the parts that cause it."""
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
        parts.append(Text(f"batch {batch_size}, {prompt_tokens} prompt tokens", style="bold"))
        evaluated = any(result.perplexity is not None for result in results)
        num_columns = len(_COLUMNS) - (0 if evaluated else _NUM_QUALITY)
        cells = [_cells(result)[:num_columns] for result in results]
        tables = stacked_tables(_COLUMNS[:num_columns], cells, width)
        tables += _parts_tables(results, "decode", "decode step", width)
        tables += _parts_tables(results, "prefill", "prefill", width)
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
        line
        for result in results
        for phase in ("decode", "prefill")
        if (line := _explain(result, results[0], phase))
    ]


def _explain(result: BenchResult, first: BenchResult, name: str) -> str | None:
    phase: Phase = getattr(result, name)
    whole: Breakdown | None = getattr(first, name).breakdown
    predicted = result.predicted_speedup
    if predicted is None or phase.kept is None or phase.kept >= ENOUGH:
        return None
    line = (
        f"{result.label}, {name}: {phase.speedup.median:.2f}x is {format_share(phase.kept)} of the predicted "
        f"{predicted:.2f}x"
    )
    if phase.breakdown is None or whole is None or phase.expected_speedup is None:
        return f"{line}."
    excess = phase.breakdown.excess(whole, predicted)
    named = sorted((share, part) for part, share in excess.items() if share >= _SMALL)[::-1]
    grown = ", ".join(f"{part} {format_share(share)}" for share, part in named) or "none of the parts"
    host = phase.breakdown.host_share
    launches = (
        ""
        if host is None
        else f" The host took {format_share(host, digits=0)} of it to launch: near 100 %, launches bound it."
    )
    fixed = f"{', '.join(FIXED_PARTS[:-1])} and {FIXED_PARTS[-1]}"
    return (
        f"{line}; with {fixed} unshrunk {phase.expected_speedup:.2f}x. Of its time take more than the evaluations "
        f"say: {grown}.{launches}"
    )


_COLUMNS = [
    "model",
    "predicted\nspeedup",
    "prefill\nspeedup",
    "kept",
    "decode\nspeedup",
    "kept",
    "cache\nratio",
    "evaluations\nper token",
    "prefill\ntokens/s",
    "decode\ntokens/s",
    "cache per\ntoken",
    "cache",
    "peak,\nprefill",
    "peak,\ndecode",
    "weights",
    "perplexity",
    "accuracy",
]
_NUM_QUALITY = 2
"""Columns, the last ones, that an evaluation fills."""


def _cells(result: BenchResult) -> list[str]:
    predicted = result.predicted_speedup
    peaks = (result.prefill.peak_bytes, result.decode.peak_bytes)
    sizes = (result.cache_bytes_per_token, result.cache_bytes, *peaks, result.weight_bytes)
    return [
        result.label,
        "-" if predicted is None else f"{predicted:.2f}x",
        _ratio(result.prefill.speedup),
        format_share(result.prefill.kept, digits=0),
        _ratio(result.decode.speedup),
        format_share(result.decode.kept, digits=0),
        f"{result.cache_ratio:.2f}x",
        str(result.evaluations_per_token),
        _speed(result.prefill.tokens_per_second.median),
        _speed(result.decode.tokens_per_second.median),
        *map(format_size, sizes),
        "-" if result.perplexity is None else f"{result.perplexity:.2f}",
        format_share(result.accuracy),
    ]


def _parts_tables(results: list[BenchResult], name: str, title: str, width: int) -> list[Table]:
    """Return the shares of a call's time of the models that were profiled."""
    rows = []
    for result in results:
        breakdown = getattr(result, name).breakdown
        if breakdown is not None:
            shares = [format_share(breakdown.share(part)) for part in PARTS]
            rows.append([result.label, f"{1000 * breakdown.total:.2f}", *shares])
    return stacked_tables([title, "ms", *PARTS], rows, width) if rows else []


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
