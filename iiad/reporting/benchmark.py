"""A bench as a table: a row a model, measured speed beside what the evaluations predict."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.benchmarking.artefact import Bench, BenchResult, Spread

from .evaluation import format_bytes, plain_table

__all__ = ["bench_table"]

_LEGEND = (
    "Speeds are medians; ratios are to the first model in the same round, with the smallest and largest in brackets.",
    "predicted: evaluations of the first / own. Head, embedding and history cost what they did, so measured",
    "ratios stay nearer to 1 than predicted ones, the more so the smaller the model. cache: measured after the run.",
)


def bench_table(bench: Bench) -> RenderableType:
    """What `iiad bench` prints: the settings, the table, and what its columns mean."""
    settings = bench.settings
    table = plain_table(
        ["model", "evaluations/token", "predicted", "prefill tokens/s", "prefill ratio"],
        ["decode tokens/s", "decode ratio", "cache/token", "cache", "cache ratio"],
    )
    for result in bench.results:
        table.add_row(*_cells(result))
    head = (
        f"batch {settings.batch_size}, {settings.prompt_tokens} prompt + {settings.new_tokens} new tokens, "
        f"{settings.repeats} rounds, {settings.dtype} on {settings.device} ({settings.device_name}), "
        f"{settings.num_threads} threads, torch {settings.torch_version}"
    )
    return Group(Text(head), table, *(Text(line, style="dim") for line in _LEGEND))


def _cells(result: BenchResult) -> list[str]:
    predicted = result.predicted_speedup
    return [
        result.label,
        str(result.evaluations_per_token),
        "-" if predicted is None else f"{predicted:.2f}x",
        _speed(result.prefill_tokens_per_second.median),
        _ratio(result.prefill_speedup),
        _speed(result.decode_tokens_per_second.median),
        _ratio(result.decode_speedup),
        format_bytes(result.cache_bytes_per_token),
        format_bytes(result.cache_bytes),
        f"{result.cache_ratio:.2f}x",
    ]


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
