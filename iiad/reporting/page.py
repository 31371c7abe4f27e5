"""`iiad report`: artefacts as one HTML file that needs no network, nor anything else beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iiad.errors import InputError
from iiad.files import write_text
from iiad.outputs import require_apart
from iiad.progress import print_status

from .charts import has_charts
from .page_colours import LEVELS, THEMES
from .page_parts import Chart, Code, Details, Prose, Section, bounded
from .page_sections import tell
from .page_summary import name_page, summarize
from .sources import Sources, gather

__all__ = ["MOST_BYTES", "PAGE", "render_page", "write_page"]

PAGE = "report.html"
MOST_BYTES = 2_000_000
ROW_LIMITS = (200, 60, 20, 6)
"""Most rows of a table, tried in turn until the page is small enough."""
_KINDS = {Prose: "prose", Code: "code", Chart: "chart", Details: "details"}


def write_page(paths: Sequence[str | Path], output: str | Path) -> Sources:
    """Write the page of artefacts, and of those in folders; return what it is made from.

    The page appears whole or not at all. Raises InputError: no artefact, one that cannot be read, artefacts of
    different models, an output that cannot be written.
    """
    sources = gather(paths)
    require_apart(sources.paths, files={"output": output})
    if not has_charts():
        print_status(
            "pictures: matplotlib is not installed (pip install 'iiad[plot]'); the page has tables alone"
        )
    write_text(output, render_page(sources))
    return sources


def render_page(sources: Sources) -> str:
    """Return the page as HTML of at most MOST_BYTES. Raises InputError for artefacts that do not fit."""
    environment = Environment(
        loader=PackageLoader("iiad.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("page.js").render().strip()
    sections, template = tell(sources), environment.get_template("page.html")
    for most_rows in ROW_LIMITS:
        page = template.render(
            title=name_page(sources)[:120],
            teacher=sources.teacher,
            figures=summarize(sources),
            sections=[_bounded(section, most_rows) for section in sections],
            kind_of=lambda part: _KINDS.get(type(part)) or part.kind,
            as_svg=Markup,  # written by ElementTree, which escapes
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            themes=THEMES,
            levels=LEVELS,
        )
        whole = page.encode(errors="backslashreplace")  # a file's name may hold what UTF-8 cannot
        if len(whole) <= MOST_BYTES:
            return whole.decode()
    raise InputError(f"report: expected artefacts that fit {MOST_BYTES:,} bytes, got more; name fewer")


def _bounded(section: Section, most_rows: int) -> Section:
    return replace(section, parts=[bounded(part, most_rows) for part in section.parts[: 2 * most_rows]])
