"""`iiad profile`: measure what each iteration of a model contributes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["profile"]


def profile(
    model: Annotated[
        str, typer.Argument(help="The teacher: a model folder with its tokenizer, or a hub name.")
    ],
    data: Annotated[
        list[str], typer.Option(help="Calibration text, after the model: files, globs, folders or stdlib.")
    ],
    output: Annotated[Path, typer.Option(help="The profile to write (JSON).")],
    metric: Annotated[
        list[str] | None, typer.Option(help="kl or cosine; may be repeated. Default: both.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="jsonl field or parquet column with the text.")] = "text",
    block_size: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a block. Default: 512, or the model's context if shorter."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks run at a time.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens to draw, as whole blocks from all of the text.")
    ] = 65536,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: float32 on the CPU, else bfloat16.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Measure what each iteration contributes to a model's output, on given text.

    The model must have iterations (an IIET or PCformer). `kl` is exact and runs
    the layers above again for each iteration; `cosine` takes one pass.

    Example:  iiad profile teacher --data stdlib --output profile.json
    """
    from rich.console import Console

    from iiad.artefacts import require_new_file

    require_new_file(output, overwrite)
    from iiad.influence import measure_influence
    from iiad.reporting.influence import InfluenceReport

    measured = measure_influence(
        model,
        data,
        metrics=metric,
        text_field=text_field,
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    measured.save(output)
    Console().print(InfluenceReport(measured))
