"""What every picture is drawn on: half a page wide, in one style, written whole as PNG and as SVG.

matplotlib, the extra `plot`, is needed by all of it. The same numbers give the same SVG, byte for byte.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iiad.errors import InputError

__all__ = [
    "COLOURS",
    "MARKERS",
    "WIDTH",
    "require_matplotlib",
    "require_numbers",
    "require_pictures",
    "style_of_ours",
    "write_picture",
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
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "iiad",  # else its ids are random
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, those that stand out on white first."""
MARKERS = "os^DvPX"


def require_matplotlib() -> None:
    """Raise InputError, in one line, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401  (only whether it is there)
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'iiad[plot]'") from None


def require_pictures(folder: str | Path) -> None:
    """Raise InputError where pictures cannot be drawn into that folder: no matplotlib, or it is a file."""
    require_matplotlib()
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder}: is a file; name a folder for the pictures")


@contextmanager
def style_of_ours() -> Iterator[None]:
    """matplotlib's defaults with ours, whatever the user's own settings are."""
    require_matplotlib()
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def require_numbers(what: str, points: Sequence[Sequence[float]]) -> None:
    """Raise InputError for no points, or NaN or infinity among their numbers."""
    if not points:
        raise InputError(f"{what}: found no point to draw; accepted: at least one")
    for point in points:
        if not all(map(math.isfinite, point)):
            raise InputError(f"{what}: found {tuple(point)}; accepted: finite numbers")


def write_picture(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write the figure as PNG and SVG: both are drawn before either is written, and each is there whole."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    contents: dict[Path, bytes] = {}
    for kind, fields in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=fields)
        contents[folder / f"{name}.{kind}"] = buffer.getvalue()
    stages: dict[Path, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}-", delete=False) as file:
                stages[path] = file.name
                file.write(content)
            os.chmod(stages[path], 0o644)
        for path, stage in stages.items():
            os.replace(stage, path)
    except OSError as error:
        raise InputError(f"{folder}: pictures cannot be written: {error.strerror}") from None
    finally:
        for stage in stages.values():
            Path(stage).unlink(missing_ok=True)
    return list(contents)
