"""Pictures for print: half a page wide, every one as PNG and as SVG, in colours that colour-blind readers can tell.

They need matplotlib, the extra `plot`. The same numbers give the same SVG, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from iiad.influence.profile import Profile

from .canvas import (
    COLOURS,
    MARKERS,
    WIDTH,
    require_matplotlib,
    require_numbers,
    require_pictures,
    style_of_ours,
    write_picture,
)

__all__ = ["draw_curve", "draw_influence", "draw_verification", "require_matplotlib", "require_pictures"]

ROW = 0.17  # inches of a layer's row: a line of numbers
LABELS = {
    "kl": "KL (nats per token)",
    "loss": "loss (nats per token)",
    "taylor": "loss, first order (nats per token)",
    "cosine": "cosine (1 \N{MINUS SIGN} cos)",
    "relative_l2": "relative change (share of the length)",
}
DECADES = 2
"""An axis is logarithmic where its values span more powers of ten than this."""


def draw_influence(profile: Profile, metric: str, folder: str | Path) -> list[Path]:
    """A heat map of one metric's scores, layers down and iterations across, with the numbers in the cells.

    Scores below 0 are hatched. Written as influence-<metric>.png and .svg.
    Raises InputError: a metric that the profile does not hold, no matplotlib, a folder that cannot be written to.
    """
    scores = profile.scores_of(metric)
    flat = [score for layer in scores for score in layer]
    with style_of_ours():
        from matplotlib.cm import ScalarMappable
        from matplotlib.figure import Figure

        shades: Any = ScalarMappable(_colour_norm([max(score, 0.0) for score in flat]), "cividis")
        num_layers, most = len(scores), max(map(len, scores))
        figure = Figure(figsize=(WIDTH, ROW * num_layers + 1.2), layout="constrained")
        axes = figure.add_subplot(xlim=(0.5, most + 0.5), ylim=(num_layers + 0.5, 0.5))
        axes.set(
            xlabel="iteration", ylabel="layer", xticks=range(1, most + 1), yticks=range(1, num_layers + 1)
        )
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
        return write_picture(figure, Path(folder), f"influence-{metric}")


def draw_curve(
    series: Mapping[str, Sequence[tuple[float, float]]],
    folder: str | Path,
    *,
    knee: tuple[float, float] | None = None,
    unit: str = "nats per token",
    name: str = "curve",
) -> list[Path]:
    """The trade-off: overhead cut against predicted loss, as <name>.png and .svg.

    series: label -> points (overhead cut as a share in [0, 1], predicted loss). The first is drawn as a line, the
        Pareto frontier for one; the others as marks.
    knee: the point to ring.
    Raises InputError: no points, NaN or infinity among them, no matplotlib, a folder that cannot be written to.
    """
    points = [point for part in series.values() for point in part]
    require_numbers("curve", points)
    with style_of_ours():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.75 * WIDTH), layout="constrained")
        axes = figure.add_subplot(xlabel="overhead cut (%)", ylabel=f"predicted loss ({unit})")
        axes.grid(visible=True)
        for (label, part), colour, marker, line in zip(
            series.items(), cycle(COLOURS), cycle(MARKERS), chain(["-"], cycle(["none"])), strict=False
        ):
            ordered = sorted(part)
            cuts, losses = [100 * cut for cut, _ in ordered], [loss for _, loss in ordered]
            axes.plot(
                cuts,
                losses,
                color=colour,
                marker=marker,
                linestyle=line,
                label=label,
                fillstyle="none" if line == "none" else "full",
            )
        if knee is not None:
            axes.plot(
                [100 * knee[0]], [knee[1]], "o", label="knee", color="black", fillstyle="none", markersize=9
            )
        _scale(axes, "y", [loss for _, loss in points])
        axes.legend(frameon=False)
        return write_picture(figure, Path(folder), name)


def draw_verification(
    points: Sequence[tuple[str, float, float, float | None]],
    folder: str | Path,
    *,
    unit: str = "nats per token",
    name: str = "verification",
) -> list[Path]:
    """Predicted against true loss of truncated teachers, with the diagonal, as <name>.png and .svg.

    points: (kind of plan, predicted loss, true loss, standard error of the true loss or None). Each kind has a
        colour and a mark of its own.
    Raises InputError: no points, NaN or infinity among them, no matplotlib, a folder that cannot be written to.
    """
    require_numbers("verification", [(predicted, true, error or 0.0) for _, predicted, true, error in points])
    with style_of_ours():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.95 * WIDTH), layout="constrained")
        axes = figure.add_subplot(xlabel=f"predicted loss ({unit})", ylabel=f"true loss ({unit})")
        axes.grid(visible=True)
        kinds = dict.fromkeys(kind for kind, *_ in points)
        for kind, colour, marker in zip(kinds, cycle(COLOURS), cycle(MARKERS), strict=False):
            predicted, true, errors = zip(
                *((p, y, error or 0.0) for k, p, y, error in points if k == kind), strict=True
            )
            axes.errorbar(
                predicted,
                true,
                yerr=errors if any(errors) else None,
                fmt=marker,
                color=colour,
                label=kind,
                elinewidth=0.6,
            )
        values = [value for _, predicted, true, _ in points for value in (predicted, true)]
        _scale(axes, "x", values)
        _scale(axes, "y", values)
        ends = axes.get_xlim(), axes.get_ylim()
        limits = (min(low for low, _ in ends), max(high for _, high in ends))
        axes.plot(limits, limits, color="0.5", linestyle="--", zorder=1, label="predicted = true")
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.legend(frameon=False)
        return write_picture(figure, Path(folder), name)


def _draw_cell(axes: Any, place: tuple[int, int], score: float, colour: Any, size: float) -> None:
    """One cell with its number, hatched where there is no colour for it."""
    from matplotlib.patches import Rectangle

    corner = (place[0] - 0.5, place[1] - 0.5)
    label = {"ha": "center", "va": "center", "fontsize": size}
    if colour is None:
        cell = Rectangle(corner, 1, 1, facecolor="white", edgecolor="0.7", linewidth=0.5, hatch="////")
        axes.text(*place, _number(score), **label, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5})
    else:
        cell = Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
        axes.text(*place, _number(score), **label, color="black" if light else "white")
    axes.add_patch(cell)


def _number(value: float) -> str:
    """Two digits, short enough for a cell: 0.034, 1.2e-5."""
    if value == 0:
        return "0"
    if not 9.95e-4 <= abs(value) < 995:
        digits, _, power = f"{value:.1e}".partition("e")
        text = f"{digits}e{int(power)}"
    else:
        text = f"{value:#.2g}".rstrip(".") if abs(value) < 99.5 else f"{value:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _colour_norm(values: Sequence[float]) -> Any:
    """Linear from 0, or logarithmic where the values, none below 0, span decades."""
    from matplotlib.colors import Normalize, SymLogNorm

    top = max(values) or 1.0
    threshold = _linear_part(values)
    return Normalize(0, top) if threshold is None else SymLogNorm(threshold, linscale=0.5, vmin=0, vmax=top)


def _scale(axes: Any, which: str, values: Sequence[float]) -> None:
    """Make the x or y axis logarithmic where the values span decades; around 0, if they reach it, linear."""
    set_scale, threshold = getattr(axes, f"set_{which}scale"), _linear_part(values)
    if threshold is None:
        axes.locator_params(axis=which, nbins=6)
    elif min(values) > 0:
        set_scale("log")
    else:
        set_scale("symlog", linthresh=threshold, linscale=0.5)


def _linear_part(values: Iterable[float]) -> float | None:
    """Up to where an axis for such values is linear, a power of ten; None: all the way."""
    sizes = [abs(value) for value in values if value]
    if not sizes or max(sizes) <= 10**DECADES * min(sizes):
        return None
    least = max(min(sizes), max(sizes) * 1e-5)  # no more decades than can be read
    return float(10 ** math.floor(math.log10(least)))
