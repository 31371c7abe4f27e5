"""Options that mean the same to several commands."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["CachePolicy", "Device", "MaxMinutes", "Overwrite", "Resume", "Settings", "TextField"]

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field. Repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")]
MaxMinutes = Annotated[
    float | None,
    typer.Option(help="Save and leave (exit code 75) when they are over; SIGTERM does the same."),
]
CachePolicy = Annotated[
    str | None,
    typer.Option(
        help="exact (a cache slot an evaluation) or shared (one a layer): refuse weights for the other."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]
TextField = Annotated[str, typer.Option(help="jsonl field or parquet column with the text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
