"""A bench as a table: a row a model, measured speed beside what the evaluations predict."""

from __future__ import annotations

from rich.console import RenderableType

from iiad.benchmarking.artefact import Bench, BenchResult, Spread

from .evaluation import format_bytes, report, stacked_tables

__all__ = ["bench_table"]

_LEGEND = (
    "speedup: median of the ratios to the first model in the same round (smallest-largest); predicted: block "
    "evaluations of the first / own; what does not shrink with them (head, embedding, the work per call) holds "
    "measured speedups below it; cache: measured after the last token, its ratio: to the first model's."
)


def bench_table(bench: Bench, width: int) -> RenderableType:
    """What `iiad bench` prints on `width` characters: the settings, the table, what its columns mean."""
    settings = bench.settings
    columns = ["model", "predicted\nspeedup", "prefill\nspeedup", "decode\nspeedup", "cache\nratio"]
    columns += [
        "evaluations\nper token",
        "prefill\ntokens/s",
        "decode\ntokens/s",
        "cache per\ntoken",
        "cache",
    ]
    tables = stacked_tables(columns, [_cells(result) for result in bench.results], width)
    head = (
        f"batch {settings.batch_size}, {settings.prompt_tokens} prompt + {settings.new_tokens} new tokens, "
        f"{settings.repeats} rounds, {settings.dtype} on {settings.device} ({settings.device_name}), "
        f"{settings.num_threads} threads, torch {settings.torch_version}"
    )
    return report(head, tables, _LEGEND)


def _cells(result: BenchResult) -> list[str]:
    predicted = result.predicted_speedup
    return [
        result.label,
        "-" if predicted is None else f"{predicted:.2f}x",
        _ratio(result.prefill_speedup),
        _ratio(result.decode_speedup),
        f"{result.cache_ratio:.2f}x",
        str(result.evaluations_per_token),
        _speed(result.prefill_tokens_per_second.median),
        _speed(result.decode_tokens_per_second.median),
        format_bytes(result.cache_bytes_per_token),
        format_bytes(result.cache_bytes),
    ]


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
