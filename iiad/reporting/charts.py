"""Charts as SVG inside a page: drawn by matplotlib, coloured by the page, each mark with its value.

matplotlib draws lines, marks and axes alone: no text of an artefact goes through it. Its colours are replaced by
variables of the page's style, so that one picture serves light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

from .canvas import MARKERS, STYLE, linear_part, scale_axis
from .page_parts import Chart, make_table
from .pictures import short_number

__all__ = ["Point", "Series", "draw_chart", "has_charts"]

SHAPES, HOLLOW = "●■▲◆▼✚✖", "○□△◇▽✚✖"
"""Unicode marks that look like MARKERS, filled and not."""
MOST_POINTS = 800
"""Of a chart; more are thinned."""
SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
SIZE, LETTERS = (
    (3.75, 2.75),
    {"font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8},
)
"""Inches and points; the page scales them. Letters are as large as the page's where a chart is 28 rem wide."""
# Stand-ins that the page's variables replace.
INK, MUTED, LINES, SERIES = "#f1f0f1", "#f1f0f2", "#f1f0f3", "#f0f0{:02x}"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINES: "var(--line)"}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Point:
    """A mark. tip: its words; low, high: ends of its bar."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one look. line: joined."""

    label: str
    points: Sequence[Point]
    line: bool = False

    @property
    def hollow(self) -> bool:
        """Return whether its marks let those beneath show: several that no line joins."""
        return len(self.points) > 1 and not self.line


def has_charts() -> bool:
    """Return whether matplotlib, the extra `plot`, is installed."""
    return find_spec("matplotlib") is not None


def draw_chart(
    name: str, title: str, text: str, axes: tuple[str, str], series: Sequence[Series], diagonal: bool = False
) -> Chart:
    """Draw series as a chart.

    name: unique on the page; begins its ids. text: says in words what it shows. axes: labels of x and y.
    diagonal: draw x = y, with both axes alike.
    """
    series = [one for one in _thin(series) if one.points]
    rows = [
        (one.label, f"{point.x:.6g}", f"{point.y:.6g}", point.tip) for one in series for point in one.points
    ]
    values = make_table(f"Values of {title}", ["series", *axes, "mark"], rows)
    legend = [
        (n % 7, (HOLLOW if one.hollow else SHAPES)[_mark(n)], one.label) for n, one in enumerate(series)
    ]
    svg = _annotate(_draw(axes, series, diagonal), name, text, series) if has_charts() else ""
    return Chart(title, text, svg, legend, values)


def _mark(number: int) -> int:
    """Return which mark a series has: colours and marks come round together only after 49 series."""
    return (number + number // 7) % 7


def _thin(series: Sequence[Series]) -> list[Series]:
    total = sum(len(one.points) for one in series)
    if total <= MOST_POINTS:
        return list(series)
    stride = -(-total // MOST_POINTS)
    thinned = [
        Series(one.label, [*one.points[:-1:stride], *one.points[-1:]], one.line)
        for one in series[:MOST_POINTS]
    ]
    return (
        thinned if sum(len(one.points) for one in thinned) <= 2 * MOST_POINTS else thinned[: MOST_POINTS // 2]
    )


def _draw(labels: tuple[str, str], series: Sequence[Series], diagonal: bool) -> bytes:
    """Return the SVG that matplotlib writes; each series is a group series-N whose `use` elements are its points."""
    from matplotlib import style
    from matplotlib.figure import Figure

    look = {
        **STYLE,
        **LETTERS,
        **{f"{part}.color": MUTED for part in ("xtick", "ytick")},
        "axes.labelcolor": INK,
        "axes.edgecolor": LINES,
        "grid.color": LINES,
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with style.context(["default", look]):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1])
        axes.grid(visible=True)
        for number, one in enumerate(series):
            _draw_series(axes, one, number)
        points = [point for one in series for point in one.points]
        heights = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
        widths = [point.x for point in points]
        scales = {"x": widths + heights, "y": widths + heights} if diagonal else {"x": widths, "y": heights}
        for which, values in scales.items():
            _scale(axes, which, values, linear=which == "x" and not diagonal)
        if diagonal:
            ends = (*axes.get_xlim(), *axes.get_ylim())
            limits = (min(ends), max(ends))
            axes.plot(limits, limits, color=MUTED, linestyle="--", linewidth=0.8, zorder=1)
            axes.set(xlim=limits, ylim=limits)
        written = BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _draw_series(axes: Any, series: Series, number: int) -> None:
    colour, dense = SERIES.format(number % 7), len(series.points) > 40
    for point in series.points:
        if point.low is not None and point.high is not None:
            axes.vlines(point.x, point.low, point.high, color=colour, linewidth=0.9)
    axes.plot(
        [point.x for point in series.points],
        [point.y for point in series.points],
        color=colour,
        marker=MARKERS[_mark(number)],
        markersize=1.5 if dense else 7 if len(series.points) == 1 else 5.5,
        linestyle="-" if series.line else "none",
        markeredgewidth=1.2 if series.hollow and not dense else 0.5,
        fillstyle="none" if series.hollow else "full",
        gid=f"series-{number}",
        clip_on=False,
        zorder=3,
    )


def _scale(axes: Any, which: str, values: Sequence[float], linear: bool) -> None:
    """Scale an axis as all our pictures do, or let it be linear; a logarithmic one has short numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if not linear:
        scale_axis(axes, which, values)
    if not linear and linear_part(values) is not None:
        axis = getattr(axes, f"{which}axis")
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axis.set_minor_formatter(NullFormatter())
    elif all(value == int(value) for value in values):
        axes.locator_params(axis=which, integer=True)


def _annotate(svg: bytes, name: str, text: str, series: Sequence[Series]) -> str:
    """Make matplotlib's SVG part of a page: its own ids, the page's colours, a description, a tip for each mark."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for number, one in enumerate(series):
        group = root.find(f".//*[@id='series-{number}']")
        marks = [] if group is None else group.findall(f".//{{{SVG}}}use")
        for mark, point in zip(marks, one.points, strict=True):
            mark.set("data-tip", point.tip)
            mark.set("class", "mark")
    for element in root.iter():
        _adopt(element, name)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", text)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    return ElementTree.tostring(root, encoding="unicode")


def _adopt(element: ElementTree.Element, name: str) -> None:
    """Give an element ids that begin with the chart's name, and the page's colours."""
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    if reference := element.attrib.get(f"{{{LINK}}}href"):
        element.set(f"{{{LINK}}}href", f"#{name}-{reference.removeprefix('#')}")
    for attribute in ("style", "clip-path"):
        if found := element.attrib.get(attribute):
            found = _REFERENCE.sub(rf"url(#{name}-\1)", found)
            for stand_in, variable in _VARIABLES.items():
                found = found.replace(stand_in, variable)
            element.set(attribute, re.sub(r"#f0f0(0\d)", lambda n: f"var(--series-{int(n[1])})", found))
