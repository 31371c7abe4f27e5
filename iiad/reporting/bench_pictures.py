"""Pictures of a bench: speedup and memory over context and batch, a line a model. They need the extra `plot`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from iiad.evaluation.bench_artefact import Bench, BenchResult

from .canvas import COLOURS, MARKERS, WIDTH, style_of_ours, write_picture

__all__ = ["draw_bench"]

_HEIGHT = 1.9  # inches of one panel
_LINE = 0.16  # and of a line of the legend


def draw_bench(bench: Bench, folder: str | Path) -> list[Path]:
    """Decode speedup and memory as bench-speedup and bench-memory, each .png and .svg.

    The side of the grid with more numbers goes along the axis, a panel for each number of the other; a dashed line
    is the predicted speedup, and the bars of a mark are the slowest and the fastest round.
    Raises InputError: no matplotlib, a folder that cannot be written to.
    """
    settings = bench.settings
    over_batch = len(settings.batch_size) > len(settings.prompt_tokens)
    axis, panels = ("batch_size", "prompt_tokens") if over_batch else ("prompt_tokens", "batch_size")
    paths = []
    with style_of_ours():
        for name, label, draw in (
            ("bench-speedup", "decode speedup", _draw_speedup),
            ("bench-memory", "peak of a decode step (MiB)", _draw_memory),
        ):
            figure = _figure(bench, axis, panels, label, draw)
            paths += write_picture(figure, Path(folder), name)
    return paths


def _figure(bench: Bench, axis: str, panels: str, label: str, draw: Callable[..., None]) -> Any:
    """One picture: a panel for each number on the other side of the grid, one below the other."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    along, numbers = getattr(bench.settings, axis), getattr(bench.settings, panels)
    num_lines = -(-len({result.label for result in bench.results}) // 2)
    height = _HEIGHT * len(numbers) + _LINE * num_lines
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(numbers), 1, squeeze=False, sharex=True)[:, 0]
    for axes, number in zip(grid, numbers, strict=True):
        here = [result for result in bench.results if getattr(result, panels) == number]
        for title, colour, marker in zip(
            dict.fromkeys(result.label for result in here), cycle(COLOURS), cycle(MARKERS), strict=False
        ):
            draw(axes, axis, [result for result in here if result.label == title], colour, marker)
        axes.set_title(f"{panels.replace('_', ' ')} {number}")
        axes.set_ylabel(label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(along, [str(value) for value in along])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True)
        axes.set_ylim(bottom=0)
    grid[-1].set_xlabel(axis.replace("_", " "))
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_speedup(axes: Any, axis: str, results: list[BenchResult], colour: str, marker: str) -> None:
    points = [getattr(result, axis) for result in results]
    spreads = [result.decode.speedup for result in results]
    errors = [
        [spread.median - spread.low for spread in spreads],
        [spread.high - spread.median for spread in spreads],
    ]
    middle = [spread.median for spread in spreads]
    axes.errorbar(
        points,
        middle,
        yerr=errors,
        color=colour,
        marker=marker,
        elinewidth=0.6,
        label=results[0].label,
    )
    predicted = results[0].predicted_speedup
    if predicted is not None and predicted != 1:
        axes.axhline(predicted, color=colour, linestyle="--", linewidth=0.6)


def _draw_memory(axes: Any, axis: str, results: list[BenchResult], colour: str, marker: str) -> None:
    points = [getattr(result, axis) for result in results]
    sizes = [result.decode.peak_bytes / 2**20 for result in results]
    axes.plot(points, sizes, color=colour, marker=marker, label=results[0].label)
