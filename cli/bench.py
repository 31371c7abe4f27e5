"""`iiad bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Overwrite

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str], typer.Argument(help="Model folders or hub names; the others are compared with the first.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(help="plan.json: adds the first model truncated to it; with --layers, to the checks."),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Measure each layer of one model at each number of iterations instead, for `iiad plan --latency`.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 1,
    prompt_tokens: Annotated[
        int, typer.Option(help="Tokens of each prompt (random ones): the context.")
    ] = 128,
    new_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens decoded after it, one forward call each; with --layers all at that context."
        ),
    ] = 64,
    repeats: Annotated[int, typer.Option(help="Measured rounds over all models, or plans.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of weights and cache: float32 or bfloat16. Default: float32 on the CPU, else bfloat16."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write bench.json, or latency.json.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prefill and decoding speed and the cache of models, beside what their evaluations predict.

    With --layers: the time of each layer of one model at each number of
    iterations, on this machine, and how well whole models follow from it.

    Example:  iiad bench teacher student --plan plan.json --new-tokens 128 --output bench.json

    Example:  iiad bench teacher --layers --prompt-tokens 512 --output latency.json
    """
    from rich.console import Console

    from iiad.artefacts import require_new_file
    from iiad.errors import InputError

    if output is not None:
        require_new_file(output, overwrite)
    if layers and len(models) != 1:
        raise InputError(f"models: found {len(models)}; accepted with --layers: one")
    from iiad.benchmarking import bench_models, measure_latency
    from iiad.reporting.benchmark import bench_table
    from iiad.reporting.latency import latency_table

    measure: Callable[..., Any] = bench_models
    show: Callable[..., Any] = bench_table
    if layers:
        measure, show = measure_latency, latency_table
    made = measure(
        models[0] if layers else models,
        plan=plan,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    if output is not None:
        made.save(output)
    console = Console()
    console.print(show(made, console.width))
