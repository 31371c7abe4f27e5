"""`iiad report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite, claim_outputs
from .output import print_result

__all__ = ["report"]


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(help="JSON files that iiad wrote; folders with them, of runs, models or a study."),
    ],
    output: Annotated[Path, typer.Option(help="Page to write (HTML).")],
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page, which needs no network, of all artefacts of a model and its students.

    Example:  iiad report experiment --output report.html

    Example:  iiad report profile.json plan.json teacher student evaluation.json --output report.html
    """
    from iiad.reporting.page import write_page

    claim_outputs([path for path in paths if path.is_file()], files={"output": output}, overwrite=overwrite)
    sources = write_page(paths, output)
    found = f"{len(sources.files)} artefacts, {len(sources.runs)} runs"
    fields = {"kind": "page", "output": str(output), "bytes": output.stat().st_size}
    print_result(fields, lambda width: f"wrote {output}: {found}, {fields['bytes']:,} bytes")
