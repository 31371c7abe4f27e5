"""`iiad bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import CachePolicy, Device, Dtype, Overwrite, Quantize

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str], typer.Argument(help="Model folders or hub names; the others are compared with the first.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(help="plan.json: adds the first model truncated to it; with --layers, to the checks."),
    ] = None,
    quantize: Quantize = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Adds each model decoding from a static cache through torch.compile (CUDA graphs on a GPU).",
        ),
    ] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="evaluation.json: shows its perplexity and accuracy beside the speed."),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Measure each layer of one model at each number of iterations instead, for `iiad plan --latency`.",
        ),
    ] = False,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Sequences at a time. Repeatable: all are measured. Default: 1.")
    ] = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Tokens of each prompt (random ones): the context. Repeatable, each with each batch size. "
            "Default: 128."
        ),
    ] = None,
    new_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens decoded after it, one forward call each; with --layers all at that context."
        ),
    ] = 64,
    repeats: Annotated[int, typer.Option(help="Measured rounds over all models, or plans.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    cache_policy: CachePolicy = None,
    device: Device = None,
    dtype: Dtype = None,
    output: Annotated[Path | None, typer.Option(help="Where to write bench.json, or latency.json.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for pictures of speedup and memory (PNG, SVG).")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Speed, memory and the cache of models, beside what their evaluations predict, and what eats the rest.

    With --layers: the time of each layer of one model at each number of
    iterations, on this machine, and how well whole models follow from it.

    Example:  iiad bench teacher student --plan plan.json --new-tokens 128 --output bench.json

    Example:  iiad bench teacher student --batch-size 1 --batch-size 16 --prompt-tokens 512 --prompt-tokens 4096

    Example:  iiad bench teacher --layers --prompt-tokens 512 --output latency.json
    """
    from rich.console import Console

    from iiad.checkpoints import require_cache_policy
    from iiad.files import require_new_file

    if output is not None:
        require_new_file(output, overwrite)
    grid: dict[str, Any] = {"batch_size": batch_size or [1], "prompt_tokens": prompt_tokens or [128]}
    if layers:
        _refuse_with_layers(
            models, grid, quantize=quantize, compile=compiled, evaluation=evaluation, plot=plot
        )
    if plot is not None:
        from iiad.reporting.pictures import require_pictures

        require_pictures(plot)
    require_cache_policy(models, cache_policy)
    settings: dict[str, Any] = {
        "plan": plan,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }
    console = Console()
    if layers:
        from iiad.evaluation.layer_latency import measure_latency
        from iiad.reporting.latency_tables import latency_table

        settings |= {name: value for name, (value,) in grid.items()}
        table = measure_latency(models[0], **settings)
        if output is not None:
            table.save(output)
        console.print(latency_table(table, console.width))
        return
    from iiad.evaluation.speed import bench_models
    from iiad.reporting.bench_tables import bench_table

    made = bench_models(
        models, quantize=quantize or [], compiled=compiled, evaluation=evaluation, **settings, **grid
    )
    if output is not None:
        made.save(output)
    console.print(bench_table(made, console.width))
    if plot is not None:
        from iiad.progress import print_status
        from iiad.reporting.bench_pictures import draw_bench

        for path in draw_bench(made, plot):
            print_status(f"drawn: {path}")


def _refuse_with_layers(models: list[str], grid: dict[str, list[int]], **others: Any) -> None:
    """Raise InputError for several models or numbers, and for the others, which are no part of a latency table."""
    from iiad.errors import InputError

    sizes: dict[str, Any] = {"models": models, **grid}
    for name, values in sizes.items():
        if len(values) != 1:
            raise InputError(f"{name}: found {len(values)}; accepted with --layers: one")
    for name, value in others.items():
        if value:
            raise InputError(f"{name}: found {value}; accepted with --layers: none")
