"""`iiad convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of the released code, a Llama, Mistral, Qwen2 or Qwen3, or one of ours."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="A new folder for the converted checkpoint.")],
    iterations: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of a released IIET, whose config does not say them, or of a Llama made one. Default: 3.",
        ),
    ] = None,
) -> None:
    """Convert a released IIET or PCformer checkpoint to ours, or one of ours back, or make a Llama an IIET.

    A Llama, Mistral, Qwen2 or Qwen3 folder becomes a plain IIET (no history) whose learned relaxation is 0: it gives
    the same logits as before, to the last bit, until training moves the relaxation.

    Example:  iiad convert released/iiet-55m teacher --iterations 3
    """
    from iiad.conversion.released import convert as run

    print(run(source, destination, iterations))
