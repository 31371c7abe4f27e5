"""`iiad profile`: measure what each iteration of a model contributes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Overwrite, TextField, split_data

__all__ = ["profile"]


def profile(
    model: Annotated[
        str, typer.Argument(help="The teacher: a model folder with its tokenizer, or a hub name.")
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Calibration text, after the model: files, globs, folders or stdlib. "
            "A second --data is another data set, kept apart."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The profile to write (JSON).")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="kl, loss, taylor, cosine or relative_l2; may be repeated. Default: all."),
    ] = None,
    text_field: TextField = "text",
    block_size: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a block. Default: 512, or the model's context if shorter."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks run at a time.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens to draw of each data set, as whole blocks from all of it.")
    ] = 65536,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw, and of the bootstrap.")] = 0,
    threshold: Annotated[
        float | None,
        typer.Option(help="Show how surely each iteration is kept at it. Default: that of the curve's knee."),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            help="Memory to take beside the weights; no score depends on it. "
            "Default: under twice what the model itself takes, or half of what is free."
        ),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: float32 on the CPU, else bfloat16.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for pictures of the scores (PNG, SVG).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the finished batches of an interrupted run.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure what each iteration contributes to a model's output, on given text.

    The model must have iterations (an IIET or PCformer). `kl` and `loss` are
    exact and run the layers above again for each iteration; `taylor` takes one
    backward pass; `cosine` and `relative_l2` come with the forward pass.

    Example:  iiad profile teacher --data stdlib --output profile.json
    """
    from rich.console import Console

    from iiad.errors import InputError
    from iiad.files import require_new_file
    from iiad.influence.partial_profile import require_no_partial

    for name, value in (("threshold", threshold), ("memory_gib", memory_gib)):
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"{name}: found {value}; accepted: a number from 0")
    require_new_file(output, overwrite)
    require_no_partial(output, resume or overwrite)
    if plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(plot)
    from iiad.influence import measure_influence
    from iiad.reporting.profile_tables import InfluenceReport

    measured = measure_influence(
        model,
        split_data(data),
        metrics=metric,
        text_field=text_field,
        block_size=block_size,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
        memory=None if memory_gib is None else int(memory_gib * 2**30),
        device=device,
        dtype=dtype,
        output=output,
        resume=resume,
    )
    Console().print(InfluenceReport(measured, threshold, seed))
    if plot is not None:
        from iiad.progress import print_status
        from iiad.reporting.pictures import draw_influence

        for metric_name in measured.scores:
            for path in draw_influence(measured, metric_name, plot):
                print_status(f"drawn: {path}")
