"""`iiad convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import claim_outputs, require_models
from .output import print_result

__all__ = ["convert"]


def _require_source(source: Path) -> Path:
    """Return the path as given. Raises InputError for a folder without a model, or a file that is no GGUF."""
    if source.is_file():
        from iiad.folders import require_gguf

        require_gguf(source)
        return source
    return require_models(source)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint folder: of the released code, Llama, Mistral, Qwen2, Qwen3, or ours; or a GGUF file.",
            callback=_require_source,
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="New folder for the converted checkpoint.")],
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Iterations per layer of a released IIET or an upcycled Llama. Default: 3.",
        ),
    ] = None,
) -> None:
    """Convert a released IIET or PCformer to ours or back, or upcycle a Llama to an IIET.

    A Llama, Mistral, Qwen2 or Qwen3 becomes a plain IIET (no history) with relaxation 0: the same logits to the
    last bit, until training moves the relaxation. So does one in a GGUF file (extra gguf), unpacked to float32.

    Example:  iiad convert released/iiet-55m teacher --iterations 3
    """
    claim_outputs([source], folders={"destination": destination})
    from iiad.conversion.released import convert as run

    line = run(source, destination, iterations)
    print_result({"destination": destination, "converted": line}, lambda width: line)
