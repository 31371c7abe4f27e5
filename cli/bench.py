"""`iiad bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .listed_plans import resolve_plan
from .options import (
    CachePolicy,
    Device,
    Dtype,
    Overwrite,
    Quantize,
    Seed,
    TrustRemoteCode,
    claim_outputs,
    refuse_options,
    require_models,
    require_plan,
)
from .output import print_result

__all__ = ["bench"]


def bench(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Model folders or hub names; the others are compared with the first.",
            callback=require_models,
        ),
    ],
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME|CUT",
            help="plan.json, or a plan that an elastic student lists: add the first model truncated to it; with "
            "--layers, check it too.",
            callback=require_plan,
        ),
    ] = None,
    quantize: Quantize = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Add each model decoding from a static cache through torch.compile (CUDA graphs on a GPU).",
        ),
    ] = False,
    evaluation: Annotated[
        Path | None, typer.Option(help="evaluation.json: show its perplexity and accuracy beside the speed.")
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Measure each layer of one model at each number of iterations, for `iiad plan --latency`.",
        ),
    ] = False,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Sequences at a time. Repeatable. Default: 1.")
    ] = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Random tokens of each prompt, or source. Repeatable, each with each batch size. Default: 128."
        ),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(help="Decoding steps, one token each; with --layers all after the prompt.")
    ] = 64,
    repeats: Annotated[int, typer.Option(help="Measured rounds over all models, or plans.")] = 5,
    seed: Seed = 0,
    cache_policy: CachePolicy = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[Path | None, typer.Option(help="Write bench.json, or latency.json, there.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw speedup and memory (PNG, SVG) into this folder.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure speed and memory, compare with the predicted speedup, and show where the time goes.

    With --layers: measure the time of each layer of one model at each number
    of iterations, and check it on whole models.

    Example:  iiad bench teacher student --plan plan.json --new-tokens 128 --output bench.json

    Example:  iiad bench teacher student --batch-size 1 --batch-size 16 --prompt-tokens 512 --prompt-tokens 4096

    Example:  iiad bench teacher --layers --prompt-tokens 512 --output latency.json
    """
    claim_outputs([*models, plan, evaluation], files={"output": output}, overwrite=overwrite)
    from iiad.checkpoints import require_cache_policy
    from iiad.evaluation import bench_models, measure_latency
    from iiad.progress import print_status
    from iiad.reporting.bench_tables import bench_table
    from iiad.reporting.latency_tables import latency_table
    from iiad.reporting.pictures import draw_bench, require_pictures

    if plot is not None:
        require_pictures(plot)
    grid: dict[str, Any] = {"batch_size": batch_size or [1], "prompt_tokens": prompt_tokens or [128]}
    if layers:
        refuse_options(context, "with --layers", "quantize", "compiled", "evaluation", "plot")
        _require_one({"models": models, **grid})
    require_cache_policy(models, cache_policy)
    shared: dict[str, Any] = {
        "plan": resolve_plan(plan, models[0]),
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    shared |= {"device": device, "dtype": dtype}
    if layers:
        table = measure_latency(models[0], **shared, **{name: value for name, (value,) in grid.items()})
        if output is not None:
            table.save(output)
        print_result(table, lambda width: latency_table(table, width))
        return
    made = bench_models(
        models, quantize=quantize or [], compiled=compiled, evaluation=evaluation, **shared, **grid
    )
    if output is not None:
        made.save(output)
    print_result(made, lambda width: bench_table(made, width))
    for path in draw_bench(made, plot) if plot is not None else ():
        print_status(f"drawn: {path}")


def _require_one(sizes: dict[str, list[Any]]) -> None:
    """Raise InputError for several models or sizes, where a latency table has one."""
    from iiad.errors import InputError

    for name, values in sizes.items():
        if len(values) != 1:
            raise InputError(f"{name}: expected one with --layers, got {len(values)}")
