"""Pictures of a profile, a curve, a verification and a bench, each written as PNG and SVG.

Every function raises InputError where matplotlib is missing or the folder cannot be written to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iiad.evaluation.bench_artefact import Bench, BenchResult
from iiad.influence.profile import Profile

from .canvas import (
    WIDTH,
    colour_norm,
    new_picture,
    require_numbers,
    require_pictures,
    scale_axis,
    styles,
)

__all__ = [
    "draw_bench",
    "draw_curve",
    "draw_influence",
    "draw_verification",
    "require_pictures",
    "short_number",
]

ROW = 0.17  # inches of a layer's row: a line of numbers
PANEL = 1.9  # inches of a panel of a bench
LINE = 0.16  # inches of a line of its legend
LABELS = {
    "kl": "KL (nats per token)",
    "loss": "loss (nats per token)",
    "taylor": "loss, first order (nats per token)",
    "cosine": "cosine (1 \N{MINUS SIGN} cos)",
    "relative_l2": "relative change (share of the length)",
}


def draw_influence(profile: Profile, metric: str, folder: str | Path) -> list[Path]:
    """Draw a heat map of one metric's scores as influence-<metric>: layers down, iterations across, numbers in cells.

    Scores below 0 are hatched. Raises InputError for a metric that the profile does not hold.
    """
    scores = profile.scores_of(metric)
    flat = [score for layer in scores for score in layer]
    num_layers, most = len(scores), max(map(len, scores))
    with new_picture(folder, f"influence-{metric}", ROW * num_layers + 1.2) as (figure, paths):
        from matplotlib.cm import ScalarMappable

        shades: Any = ScalarMappable(colour_norm([max(score, 0.0) for score in flat]), "cividis")
        axes = figure.add_subplot(xlim=(0.5, most + 0.5), ylim=(num_layers + 0.5, 0.5))
        axes.set(xlabel="iteration", ylabel="layer", xticks=range(1, most + 1))
        axes.set_yticks(range(1, num_layers + 1), profile.model.layer_labels())
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        size = 7 if most <= 5 else max(4, 48 / most)  # points; a cell is narrower with more of them
        for t, layer in enumerate(scores, 1):
            for i, score in enumerate(layer, 1):
                _draw_cell(axes, (i, t), score, None if score < 0 else shades.to_rgba(score), size)
        bar = figure.colorbar(shades, ax=axes, location="bottom", aspect=30, pad=0.02)
        harm = "\nhatched: below 0" if min(flat) < 0 else ""
        bar.set_label(f"influence by {LABELS.get(metric, metric)}{harm}")
        bar.outline.set_visible(False)
        bar.ax.minorticks_off()
    return paths


def draw_curve(
    series: Mapping[str, Sequence[tuple[float, float]]],
    folder: str | Path,
    *,
    knee: tuple[float, float] | None = None,
    unit: str = "nats per token",
) -> list[Path]:
    """Draw the trade-off of overhead cut and predicted loss as curve.

    series: label -> points (overhead cut as a share in [0, 1], predicted loss). The first is a line, the Pareto
        frontier for one; the others are marks.
    knee: the point to ring.
    Raises InputError for no points, NaN or infinity.
    """
    points = [point for part in series.values() for point in part]
    require_numbers("curve", points)
    with new_picture(folder, "curve", 0.75 * WIDTH) as (figure, paths):
        axes = figure.add_subplot(xlabel="overhead cut (%)", ylabel=f"predicted loss ({unit})")
        axes.grid(visible=True)
        for number, ((label, part), look) in enumerate(zip(series.items(), styles(), strict=False)):
            cuts, losses = [100 * cut for cut, _ in sorted(part)], [loss for _, loss in sorted(part)]
            marks = {"linestyle": "none", "fillstyle": "none"} if number else {}
            axes.plot(cuts, losses, label=label, **look, **marks)
        if knee is not None:
            ring = {"color": "black", "fillstyle": "none", "markersize": 9}
            axes.plot([100 * knee[0]], [knee[1]], "o", label="knee", **ring)
        scale_axis(axes, "y", [loss for _, loss in points])
        axes.legend()
    return paths


def draw_verification(
    points: Sequence[tuple[str, float, float, float | None]],
    folder: str | Path,
    *,
    unit: str = "nats per token",
) -> list[Path]:
    """Draw predicted against true loss of truncated teachers, with the diagonal, as verification.

    points: (kind of plan, predicted loss, true loss, standard error of the true loss or None).
    Raises InputError for no points, NaN or infinity.
    """
    numbers = [(predicted, true, error or 0.0) for _, predicted, true, error in points]
    require_numbers("verification", numbers)
    with new_picture(folder, "verification", 0.95 * WIDTH) as (figure, paths):
        axes = figure.add_subplot(xlabel=f"predicted loss ({unit})", ylabel=f"true loss ({unit})")
        axes.grid(visible=True)
        series: dict[str, list[tuple[float, ...]]] = {}
        for (kind, *_), triple in zip(points, numbers, strict=True):
            series.setdefault(kind, []).append(triple)
        for (kind, own), look in zip(series.items(), styles(), strict=False):
            predicted, true, errors = zip(*own, strict=True)
            bars = errors if any(errors) else None
            axes.errorbar(predicted, true, yerr=bars, label=kind, linestyle="none", elinewidth=0.6, **look)
        values = [value for predicted, true, _ in numbers for value in (predicted, true)]
        for which in "xy":
            scale_axis(axes, which, values)
        ends = axes.get_xlim(), axes.get_ylim()
        limits = (min(low for low, _ in ends), max(high for _, high in ends))
        axes.plot(limits, limits, color="0.5", linestyle="--", zorder=1, label="predicted = true")
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.legend()
    return paths


def draw_bench(bench: Bench, folder: str | Path) -> list[Path]:
    """Draw decode speedup and memory over the grid as bench-speedup and bench-memory, a line a model.

    The side of the grid with more numbers goes along the axis, a panel for each number of the other; a dashed line
    is the predicted speedup, and the bars of a mark are the slowest and the fastest round.
    """
    settings = bench.settings
    over_batch = len(settings.batch_size) > len(settings.prompt_tokens)
    along, panels = ("batch_size", "prompt_tokens") if over_batch else ("prompt_tokens", "batch_size")
    labels, numbers = dict.fromkeys(result.label for result in bench.results), getattr(settings, panels)
    height = PANEL * len(numbers) + LINE * -(-len(labels) // 2)
    paths: list[Path] = []
    for name, title, draw in (
        ("bench-speedup", "decode speedup", _draw_speedup),
        ("bench-memory", "peak of a decode step (MiB)", _draw_memory),
    ):
        with new_picture(folder, name, height) as (figure, written):
            column = figure.subplots(len(numbers), 1, squeeze=False, sharex=True)[:, 0]
            for axes, number in zip(column, numbers, strict=True):
                for label, look in zip(labels, styles(), strict=False):
                    own = [r for r in bench.results if (r.label, getattr(r, panels)) == (label, number)]
                    draw(axes, [getattr(result, along) for result in own], own, {"label": label, **look})
                axes.set(title=f"{panels.replace('_', ' ')} {number}", ylabel=title, ylim=(0, None))
                axes.set_xscale("log", base=2)
                ticks = getattr(settings, along)
                axes.set_xticks(ticks, [str(value) for value in ticks])
                axes.minorticks_off()
                axes.grid(visible=True)
            column[-1].set_xlabel(along.replace("_", " "))
            figure.legend(*column[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        paths += written
    return paths


def _draw_speedup(axes: Any, points: list[int], results: list[BenchResult], look: dict[str, str]) -> None:
    spreads = [result.decode.speedup for result in results]
    middle = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    axes.errorbar(points, middle, yerr=[below, above], elinewidth=0.6, **look)
    predicted = results[0].decode.predicted_speedup
    if predicted is not None and predicted != 1:
        axes.axhline(predicted, color=look["color"], linestyle="--", linewidth=0.6)


def _draw_memory(axes: Any, points: list[int], results: list[BenchResult], look: dict[str, str]) -> None:
    axes.plot(points, [result.decode.peak_bytes / 2**20 for result in results], **look)


def _draw_cell(axes: Any, place: tuple[int, int], score: float, colour: Any, size: float) -> None:
    """Draw one cell with its number, hatched where it has no colour."""
    from matplotlib.patches import Rectangle

    corner = (place[0] - 0.5, place[1] - 0.5)
    label = {"ha": "center", "va": "center", "fontsize": size}
    if colour is None:
        cell = Rectangle(corner, 1, 1, facecolor="white", edgecolor="0.7", linewidth=0.5, hatch="////")
        axes.text(
            *place, short_number(score), **label, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5}
        )
    else:
        cell = Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
        axes.text(*place, short_number(score), **label, color="black" if light else "white")
    axes.add_patch(cell)


def short_number(value: float) -> str:
    """Return two digits, short enough for a cell: 0.034, 1.2e-5."""
    if value == 0:
        return "0"
    if not 9.95e-4 <= abs(value) < 995:
        digits, _, power = f"{value:.1e}".partition("e")
        text = f"{digits}e{int(power)}"
    else:
        text = f"{value:#.2g}".rstrip(".") if abs(value) < 99.5 else f"{value:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")
