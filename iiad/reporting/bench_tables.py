"""A bench as tables: a row a model, measured speed beside what the evaluations predict, and what eats the rest."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iiad.evaluation.bench_artefact import FIXED_PARTS, PARTS, Bench, BenchResult, Phase, Spread
from iiad.memory import format_size

from .evaluation_tables import format_share, stacked_tables

__all__ = ["bench_table", "explain_losses"]

_LEGEND = (
    "speedup: median of the ratios to the first model in the same round (smallest-largest); predicted: block "
    "evaluations of the first / own; kept: speedup / predicted; peak: most bytes of tensors alive at once beside the "
    "weights, the cache included; cache: measured after the last token, its ratio: to the first model's."
)
_PARTS_LEGEND = (
    "Share of a call's time, watched in runs of their own: attention: queries on keys, values by weights; cache: "
    "adding to its slots; solver: history and norms between evaluations; head: with the final norm; rest: mask, "
    "angles, choice of the token, Python and launches outside of the layers."
)
ENOUGH = 0.97
"""Of the predicted speedup; where less is kept, the reader is told what eats it."""
_SMALL = 0.005
"""A share of the time that is not worth naming."""


def bench_table(bench: Bench, width: int) -> RenderableType:
    """What `iiad bench` prints on `width` characters: the settings, tables for each point of the grid, a legend."""
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
    """A line for each result and phase that keeps too little of its predicted speedup: what does not shrink.

    results: of one point of the grid, the first model's first.
    """
    return [
        line
        for result in results
        for phase in ("decode", "prefill")
        if (line := _explain(result, results[0], phase))
    ]


def _explain(result: BenchResult, first: BenchResult, name: str) -> str | None:
    phase, other, predicted = _phase(result, name), _phase(first, name), result.predicted_speedup
    if predicted is None or phase.kept is None or phase.kept >= ENOUGH:
        return None
    line = (
        f"{result.label}, {name}: {phase.speedup.median:.2f}x is {format_share(phase.kept)} of the predicted "
        f"{predicted:.2f}x"
    )
    if phase.breakdown is None or other.breakdown is None or phase.expected_speedup is None:
        return f"{line}."
    excess = phase.breakdown.excess(other.breakdown, predicted)
    named = sorted((share, part) for part, share in excess.items() if share >= _SMALL)[::-1]
    eaten = ", ".join(f"{part} {format_share(share)}" for share, part in named) or "nothing that was watched"
    fixed = ", ".join(FIXED_PARTS[:-1])
    return (
        f"{line}; with {fixed} and {FIXED_PARTS[-1]} unshrunk {phase.expected_speedup:.2f}x. Of its time take more "
        f"than the evaluations say: {eaten}.{_launches(phase)}"
    )


def _launches(phase: Phase) -> str:
    share = phase.breakdown.host_share if phase.breakdown else None
    if share is None:
        return ""
    return f" The host took {format_share(share, digits=0)} of the time to ask for it: near 100 %, launches bound it."


def _phase(result: BenchResult, name: str) -> Phase:
    return result.decode if name == "decode" else result.prefill


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
        *(
            format_size(size)
            for size in (
                result.cache_bytes_per_token,
                result.cache_bytes,
                result.prefill.peak_bytes,
                result.decode.peak_bytes,
                result.weight_bytes,
            )
        ),
        "-" if result.perplexity is None else f"{result.perplexity:.2f}",
        format_share(result.accuracy),
    ]


def _parts_tables(results: list[BenchResult], name: str, title: str, width: int) -> list[Table]:
    """The shares of a call's time, of the models that were watched."""
    rows = []
    for result in results:
        breakdown = _phase(result, name).breakdown
        if breakdown is not None:
            shares = [format_share(breakdown.share(part)) for part in PARTS]
            rows.append([result.label, f"{1000 * breakdown.total:.2f}", *shares])
    return stacked_tables([title, "ms", *PARTS], rows, width) if rows else []


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
