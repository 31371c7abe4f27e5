"""One style for all pictures: half a page wide, as PNG and SVG; the same numbers give the same files.

matplotlib is the extra `plot`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from iiad.errors import InputError
from iiad.files import atomic_file

__all__ = [
    "WIDTH",
    "colour_norm",
    "linear_part",
    "new_picture",
    "require_matplotlib",
    "require_numbers",
    "require_pictures",
    "scale_axis",
    "styles",
]

WIDTH = 3.3  # inches: half a page
DPI = 300
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "iiad",  # else its ids are random
}
METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
MARKERS = "os^DvPX"
DECADES = 2
"""An axis is logarithmic where its values span more powers of ten."""


def require_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401  (only whether it is there)
    except ImportError:
        raise InputError("pictures: expected matplotlib, got none: pip install 'iiad[plot]'") from None


def require_pictures(folder: str | Path) -> None:
    """Raise InputError where pictures cannot be drawn into that folder: no matplotlib, or it is a file."""
    require_matplotlib()
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder}: expected a folder for the pictures, got a file")


def require_numbers(what: str, points: Sequence[Sequence[float]]) -> None:
    """Raise InputError for no points, or NaN or infinity among their numbers."""
    if not points:
        raise InputError(f"{what}: expected at least one point to draw, got none")
    for point in points:
        if not all(map(math.isfinite, point)):
            raise InputError(f"{what}: expected finite numbers, got {tuple(point)}")


@contextmanager
def new_picture(folder: str | Path, name: str, height: float) -> Iterator[tuple[Any, list[Path]]]:
    """Yield an empty matplotlib figure in our style and the paths, PNG and SVG, that it is written to afterwards.

    height: inches. Raises InputError: no matplotlib, or a folder that cannot be written to; nothing is left then.
    """
    require_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    paths = [Path(folder) / f"{name}.{kind}" for kind in METADATA]
    with style.context(["default", STYLE]), ExitStack() as files:
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, paths
        for path, (kind, fields) in zip(paths, METADATA.items(), strict=True):
            figure.savefig(files.enter_context(atomic_file(path)), format=kind, dpi=DPI, metadata=fields)


def styles() -> Iterator[dict[str, str]]:
    """Yield colour and marker of one series after the other, without end."""
    for colour, marker in zip(cycle(COLOURS), cycle(MARKERS), strict=True):
        yield {"color": colour, "marker": marker}


def colour_norm(values: Sequence[float]) -> Any:
    """Return a norm that is linear from 0, or logarithmic where the values, none below 0, span decades."""
    from matplotlib.colors import Normalize, SymLogNorm

    top = max(values) or 1.0
    threshold = linear_part(values)
    return Normalize(0, top) if threshold is None else SymLogNorm(threshold, linscale=0.5, vmin=0, vmax=top)


def scale_axis(axes: Any, which: str, values: Sequence[float]) -> None:
    """Make the "x" or "y" axis logarithmic where the values span decades; around 0, if they reach it, linear."""
    set_scale, threshold = getattr(axes, f"set_{which}scale"), linear_part(values)
    if threshold is None:
        axes.locator_params(axis=which, nbins=6)
    elif min(values) > 0:
        set_scale("log")
    else:
        set_scale("symlog", linthresh=threshold, linscale=0.5)


def linear_part(values: Iterable[float]) -> float | None:
    """Return the power of ten up to which an axis for such values is linear; None: all the way."""
    sizes = [abs(value) for value in values if value]
    if not sizes or max(sizes) <= 10**DECADES * min(sizes):
        return None
    least = max(min(sizes), max(sizes) * 1e-5)  # no more decades than can be read
    return float(10 ** math.floor(math.log10(least)))
